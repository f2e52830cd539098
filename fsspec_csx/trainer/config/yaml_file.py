"""YAML files of plain values, at any fsspec URL: https://yaml.org/spec/1.1/"""

from __future__ import annotations

import re
from typing import Any

from fsspec_csx.errors import ConfigError
from fsspec_csx.storage.files import resolve_path
from fsspec_csx.storage.paths import redacted

try:
    import yaml
except ImportError as error:
    msg = "The package PyYAML is not installed. Install fsspec-csx[trainer]."
    raise ImportError(msg) from error

# YAML 1.1 reads 1e-3 as a string, but learning rates often have this form.
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")
# Far more than any configuration needs; repetitions by aliases count each time.
_LARGEST = 2**20  # bytes
_DEPTH = 100
_NODES = 30_000
_DIGITS = 100
# PyYAML's messages quote values that begin like an alias, an anchor or a tag; they may be secrets.
_FROM_FILE = re.compile(r"(alias|anchor|tag|handle) '[^']*'")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses duplicate keys and unbounded growth, and reads all forms of numbers."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if not hasattr(node, "nodes"):
                raise yaml.composer.ComposerError(None, None, "what an alias stands for holds it", mark)
            return node
        self.depth += 1
        if self.depth > _DEPTH:
            raise yaml.composer.ComposerError(None, None, f"it is nested deeper than {_DEPTH}", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        inner = _inner(node)
        node.nodes = 1 + sum(each.nodes for each in inner)
        node.height = 1 + max((each.height for each in inner), default=0)
        if node.nodes > _NODES or node.height > _DEPTH:
            what = f"it has more than {_NODES} values, or is nested deeper than {_DEPTH}, counting aliases"
            raise yaml.composer.ComposerError(None, None, what, mark)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _DIGITS:
                raise ValueError
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, OverflowError) as error:
            what = f"the value is not a valid {node.tag.rpartition(':')[2]}"  # the value may be a secret
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        known: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.value in known:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} occurs twice", key.start_mark)
            known |= {key.value} if isinstance(key, yaml.ScalarNode) else set()
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read(path: str) -> Any:
    """Read a YAML file at a local path or an fsspec URL.

    Raises a ConfigError if it is not YAML, has a tag for an object or a duplicate key, or is too large.
    """
    fs, inner = resolve_path(path, path, None)
    with open(inner, "rb") if fs is None else fs.open(inner, "rb") as file:
        content: bytes = file.read(_LARGEST + 1)
    name = redacted(path)
    if len(content) > _LARGEST:
        raise ConfigError(f"{name} has more than {_LARGEST} bytes.", "Check that it is the YAML of a training.")
    return parse(content, name)


def parse(content: bytes | str, name: str) -> Any:
    """Parse YAML; errors are as for ``read``, and contain ``name``."""
    try:
        return yaml.load(content, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        problem = _FROM_FILE.sub(r"\1", problem)
        # PyYAML's own message quotes the line, which may hold a secret.
        raise ConfigError(f"{name}{place}: {problem}.", "Correct the YAML there.") from None


def _inner(node: Any) -> list[Any]:
    if isinstance(node.value, str):
        return []
    return [part for each in node.value for part in (each if isinstance(each, tuple) else (each,))]
