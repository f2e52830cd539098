"""YAML files at any fsspec URL, of plain values only: https://yaml.org/spec/1.1/"""

from __future__ import annotations

import re
from typing import Any

from fsspec_csx.checkpoint import locate
from fsspec_csx.errors import ConfigError
from fsspec_csx.paths import redacted

# YAML 1.1 takes numbers such as 1e-3 for texts, and learning rates are written so.
_FLOAT = re.compile(r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")


def read(path: str) -> Any:
    """What a YAML file says.

    Args:
        path: a local path or an fsspec URL.

    Raises:
        ConfigError: if it is no YAML, or holds a tag that is to make something, or a key twice.
        ImportError: without PyYAML.
        OSError: what the filesystem raised.
    """
    try:
        import yaml
    except ImportError as error:
        msg = "The package PyYAML is not installed. Install fsspec-csx[trainer]."
        raise ImportError(msg) from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses a key that is there twice, and knows all numbers."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for number, (key, _) in enumerate(node.value):
                if isinstance(key, yaml.ScalarNode) and key.value in keys[:number]:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            made: dict[Any, Any] = super().construct_mapping(node, deep)
            return made

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
    content = _content(path)
    try:
        return yaml.load(content, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        told = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise ConfigError(f"{redacted(path)}{place}: {told}.", "Correct the YAML there.") from error


def _content(path: str) -> bytes:
    fs, inner = locate(path, path, None)
    if fs is None:
        with open(inner, "rb") as file:
            return file.read()
    content: bytes = fs.cat_file(inner)
    return content
