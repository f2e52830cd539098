"""A YAML file of one training, or of several that run in sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fsspec_csx.errors import ConfigError
from fsspec_csx.redaction import register_secrets
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer.config import yaml_file
from fsspec_csx.trainer.config.arguments import display
from fsspec_csx.trainer.config.training import Config

_LEGACY = ("runconfig", "train_input", "eval_input")


def read(path: str, words: Iterable[str] = (), **changes: Any) -> list[Config]:
    """Read and check the configurations in a YAML file at a local path or an fsspec URL.

    The words ``key=value`` replace values of each training: ``init.loop.max_steps=10``. A number in a key is a list
    index. The value is YAML. For other changes see ``Config``. Raises a ConfigError for an invalid file.
    """
    content = yaml_file.read(path)
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
    made = _copied(content)
    for word in words:
        key, _, text = word.partition("=")
        names = [name for name in key.split(".") if name]
        _set(made, names if names[:1] == ["trainer"] else ["trainer", *names], yaml_file.parse(text, f"-o {key}"), key)
    return made


def _copied(node: Any) -> Any:
    """Return a copy in which each alias has its own copy of the value."""
    if isinstance(node, dict):
        return {key: _copied(each) for key, each in node.items()}
    return [*map(_copied, node)] if isinstance(node, list) else node


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
