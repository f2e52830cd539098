"""A YAML file of one training, or of several that run one after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from fsspec_csx.errors import ConfigError
from fsspec_csx.redaction import register_secrets
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer.config import yaml_file
from fsspec_csx.trainer.config.training import Config
from fsspec_csx.trainer.config.type_hints import display

_LEGACY = ("runconfig", "train_input", "eval_input")


def read(path: str, values: Iterable[str] = (), **changes: Any) -> list[Config]:
    """The configurations of a YAML file, all checked.

    Args:
        path: a local path or an fsspec URL.
        values: words ``key=value`` that replace values of each training: ``init.loop.max_steps=10``. A number in a key
            is an index of a list. The value is YAML.
        changes: other replacements of what the file says; see ``Config``.

    Raises:
        ConfigError: if it is no YAML, or a legacy file; see also ``Config``.
        OSError: an error of the filesystem.
    """
    content = yaml_file.read(path)
    register_secrets(content)
    if isinstance(content, Mapping) and "trainer" not in content and any(key in content for key in _LEGACY):
        raise _legacy(path)
    trainers = content.get("trainer") if isinstance(content, Mapping) else None
    if not isinstance(trainers, list):
        return [Config(_with(content, values), **changes)]
    if not trainers or len(content) > 1:
        raise ConfigError("A list of trainings is empty, or is not alone.", "Give 'trainer: [{trainer: {…}}, …]'.")
    return [Config(_with(each, values), f"trainer[{number}]", **changes) for number, each in enumerate(trainers)]


def _legacy(path: str) -> ConfigError:
    return ConfigError(
        f"{redacted(path)} is a legacy file of the ModelZoo, with runconfig in place of trainer.",
        "Convert it by the ModelZoo's 'cszoo config convert_legacy FILE -o NEW', or by hand: the Trainer's README has "
        "a table.",
    )


def _with(content: Any, values: Iterable[str]) -> Any:
    """The content with other values."""
    made = copy.deepcopy(content)
    for each in values:
        key, _, text = each.partition("=")
        names = [name for name in key.split(".") if name]
        names = names if names[:1] == ["trainer"] else ["trainer", *names]
        node = made
        for name in names[:-1]:
            node = _below(node, name, key)
        _below(node, names[-1], key)
        place: Any = int(names[-1]) if isinstance(node, list) else names[-1]
        node[place] = yaml_file.parse(text, f"-o {key}")
    return made


def _below(node: Any, name: str, key: str) -> Any:
    """What a mapping or a list has under a name; a mapping gets an empty one if it has nothing."""
    if isinstance(node, dict):
        if node.get(name) is None:
            node[name] = {}
        return node[name]
    if isinstance(node, list) and name.isdigit() and int(name) < len(node):
        return node[int(name)]
    raise ConfigError(f"-o {key}: there is no {name!r} in {display(node, key)}.", "Check the key against the file.")
