"""A YAML file of one training, or of several that run in sequence: https://yaml.org/spec/1.1/"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fsspec_csx.errors import ConfigError
from fsspec_csx.redaction import register_secrets
from fsspec_csx.storage.files import resolve_path
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer.config.arguments import display
from fsspec_csx.trainer.config.training import Config

try:
    import yaml
except ImportError as error:
    msg = "The package PyYAML is not installed. Install fsspec-csx[trainer]."
    raise ImportError(msg) from error

_LEGACY = ("runconfig", "train_input", "eval_input")
# YAML 1.1 reads 1e-3 as a string, but learning rates often have this form.
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")
_LARGEST = 2**20  # bytes, far more than any configuration needs
# PyYAML's messages quote values that begin like an alias, an anchor or a tag; they may be secrets.
_FROM_FILE = re.compile(r"(alias|anchor|tag|handle) '[^']*'")


def read(path: str, words: Iterable[str] = (), **changes: Any) -> list[Config]:
    """Read and check the configurations in a YAML file at a local path or an fsspec URL.

    The words ``key=value`` replace values of each training: ``init.loop.max_steps=10``. A number in a key is a list
    index. The value is YAML. For other changes see ``Config``. Raises a ConfigError for an invalid file.
    """
    content = read_yaml(path)
    register_secrets(content)
    if isinstance(content, Mapping) and "trainer" not in content and any(key in content for key in _LEGACY):
        raise ConfigError(
            f"{redacted(path)} is a legacy file of the ModelZoo, with runconfig in place of trainer.",
            "Convert it by the ModelZoo's 'cszoo config convert_legacy FILE -o NEW', or by hand: see its README here.",
        )
    trainers = content.get("trainer") if isinstance(content, Mapping) else None
    if not isinstance(trainers, list):
        return [Config(_with(content, words), **changes)]
    if not trainers or len(content) > 1:
        raise ConfigError(
            "The list of trainings is empty, or not the only key.", "Give 'trainer: [{trainer: {…}}, …]'."
        )
    return [Config(_with(each, words), f"trainer[{number}]", **changes) for number, each in enumerate(trainers)]


def _with(content: Any, words: Iterable[str]) -> Any:
    for word in words:
        key, _, text = word.partition("=")
        names = [name for name in key.split(".") if name]
        _set(content, names if names[:1] == ["trainer"] else ["trainer", *names], _parse(text, f"-o {key}"), key)
    return content


def _set(node: Any, names: list[str], value: Any, key: str) -> None:
    """Set a value below a mapping or a list, and create missing mappings."""
    first, *others = names
    if isinstance(node, dict) and (not others or first == "csx"):  # then the whole key is the name of a flag
        node[".".join(names)] = value
    elif isinstance(node, dict):
        if node.get(first) is None:
            node[first] = {}
        _set(node[first], others, value, key)
    elif isinstance(node, list) and first.isdigit() and int(first) < len(node):
        if others:
            _set(node[int(first)], others, value, key)
        else:
            node[int(first)] = value
    else:
        raise ConfigError(
            f"-o {key}: there is no {first!r} in {display(node, key)}.", "Check the key against the file."
        )


# -- YAML --------------------------------------------------------------------------------------------------------------


def read_yaml(path: str) -> Any:
    """Read a YAML file of plain values.

    Raises a ConfigError if it is not YAML, has a tag for an object or a duplicate key, or is too large.
    """
    fs, inner = resolve_path(path, path, None)
    with open(inner, "rb") if fs is None else fs.open(inner, "rb") as file:
        content: bytes = file.read(_LARGEST + 1)
    name = redacted(path)
    if len(content) > _LARGEST:
        raise ConfigError(f"{name} has more than {_LARGEST} bytes.", "Check that it is the YAML of a training.")
    return _parse(content, name)


def _parse(content: bytes | str, name: str) -> Any:
    try:
        return _copied(yaml.load(content, _Loader))
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply.", "Check its brackets and indentation.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        problem = _FROM_FILE.sub(r"\1", problem)
        # PyYAML's own message quotes the line, which may hold a secret.
        raise ConfigError(f"{name}{place}: {problem}.", "Correct the YAML there.") from None


def _copied(node: Any) -> Any:
    """Return a copy in which each alias has its own copy of the value; a value in itself is a RecursionError."""
    if isinstance(node, dict):
        return {key: _copied(each) for key, each in node.items()}
    return [*map(_copied, node)] if isinstance(node, list) else node


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses duplicate keys, and names invalid values without quoting them."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
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
