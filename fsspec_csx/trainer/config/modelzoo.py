"""Models and data processors as the ModelZoo's files name them: ``{name: gpt3, …}``, ``{data_processor: …, …}``.

The name is an import path, or a name of the ModelZoo's registry if the package ``cerebras.modelzoo`` is installed. The
other keys are the arguments. A class whose first parameter is ``config`` or ``params`` receives them as one object, of
the class in its type hint, or as a dict.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fsspec_csx.errors import ConfigError
from fsspec_csx.trainer.config.arguments import fields_of
from fsspec_csx.trainer.config.blueprint import Blueprint, blueprint, hints_of, named, parameters_of, resolve
from fsspec_csx.trainer.config.import_path import is_import_path, suggestion

_REGISTRY = "cerebras.modelzoo.registry"
_IMPORT_PATH = "Give an import path, such as 'package.module.Class'"


def model(node: Any, path: str) -> Blueprint:
    """Return the blueprint of a model."""
    return _beside(node, path, "name", lambda entry: {entry.name: entry.path})


def data_processor(node: Any, path: str) -> Blueprint:
    """Return the blueprint of a data loader."""

    def paths_of(entry: Any) -> dict[str, str]:
        return {each.rpartition(".")[2]: each for each in entry.data_processor_paths}

    return _beside(node, path, "data_processor", paths_of)


def as_loader(made: Any) -> Any:
    """Return the data loader of a data processor: the result of ``create_dataloader``, or the processor itself."""
    if isinstance(made, torch.utils.data.DataLoader) or not hasattr(made, "create_dataloader"):
        return made
    return made.create_dataloader()


def _beside(node: Any, path: str, key: str, paths_of: Callable[[Any], dict[str, str]]) -> Blueprint:
    """Return the blueprint of a class that ``key`` names beside its arguments; without the key, see ``named``."""
    if not isinstance(node, Mapping) or key not in node or "class_path" in node:
        if isinstance(node, Mapping) and len(node) != 1 and "class_path" not in node:
            remedy = f"Give it as {key!r}, beside its arguments, or as class_path with init_args."
            raise ConfigError(f"{path} names no class.", remedy)
        return named(node, path)
    name, place = node[key], f"{path}.{key}"
    arguments = {other: value for other, value in node.items() if other != key}
    registered = isinstance(name, str) and not is_import_path(name)
    found = resolve(_registered(name, place, paths_of) if registered else name, place)
    return _configured(found, dict(node) if registered else arguments, path) or blueprint(found, arguments, path)


def _configured(function: Callable[..., Any], arguments: dict[str, Any], path: str) -> Blueprint | None:
    """Return the blueprint of a class that receives its arguments as one object; None for other classes."""
    first = next(iter(parameters_of(function) or ()), "")
    if first not in ("config", "params") or first in arguments:
        return None
    hint = hints_of(function).get(first)
    if isinstance(hint, type) and not issubclass(hint, Mapping):
        config = Blueprint(path, hint, arguments)
        if fields_of(hint):
            config.make()  # find errors of a pydantic model before anything runs
        return Blueprint(path, function, {first: config})
    return Blueprint(path, function, {first: arguments})


def _registered(name: str, path: str, paths_of: Callable[[Any], dict[str, str]]) -> str:
    """Return the import path for a name in the ModelZoo's registry."""
    try:
        registry = importlib.import_module(_REGISTRY).registry
    except Exception as error:  # the code of its modules may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{_REGISTRY}.".startswith(f"{error.name}."):
            reason = f"{path}: {name!r} is no import path, and the ModelZoo, which may have it, is not installed."
            raise ConfigError(reason, f"{_IMPORT_PATH}, or install the package cerebras.modelzoo.") from error
        reason = f"{path}: {_REGISTRY} cannot be imported: {type(error).__name__}: {error}."
        raise ConfigError(reason, f"{_IMPORT_PATH}, or correct that package.") from error
    known: dict[str, str] = {}
    for each in registry.get_model_names():
        known |= paths_of(registry.get_model(each))
    if name not in known:
        remedy = suggestion(name, known, f"{_IMPORT_PATH}.")
        raise ConfigError(f"{path}: the ModelZoo's registry has no {name!r}.", remedy)
    return known[name]
