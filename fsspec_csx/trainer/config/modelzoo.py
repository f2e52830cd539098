"""Models, data processors, optimizers and schedulers as the ModelZoo's files name them.

Models and data have the forms ``{name: gpt3, …}`` and ``{data_processor: …, …}``. The name is an import path, or a name
of the ModelZoo's registry if the package ``cerebras.modelzoo`` is installed. The other keys are the arguments. A class
whose first parameter is ``config`` or ``params`` receives them as one object, of the class in its type hint, or as a
dict.

An optimizer or a scheduler without a module is the ModelZoo's, or else torch's. If both have the name, the ModelZoo's
class is used with its defaults, unless only torch's accepts the arguments. The case of a name does not matter.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fsspec_csx.errors import ConfigError
from fsspec_csx.trainer import optimizers, schedulers
from fsspec_csx.trainer.config.arguments import check, fields_of
from fsspec_csx.trainer.config.blueprint import Blueprint, blueprint, hints_of, named, parameters_of, resolve
from fsspec_csx.trainer.config.import_path import import_name, is_import_path, suggestion
from fsspec_csx.trainer.param_groups import param_groups

_REGISTRY = "cerebras.modelzoo.registry"
_IMPORT_PATH = "Give an import path, such as 'package.module.Class'"
_TORCH = torch.optim.lr_scheduler
# Arguments that only the Trainer gives to an optimizer, and to a scheduler.
_TO_OPTIMIZER, _TO_SCHEDULER = ("params", "model"), ("optimizer",)
_GIVEN = (*_TO_OPTIMIZER, *_TO_SCHEDULER)
_GROUPING = {"params": dict[str, Any] | list[dict[str, Any]], "adjust_learning_rate": dict[str, float]}
_OPTIMIZERS = {each.lower(): getattr(optimizers, each).__name__ for each in optimizers.__all__}
_SCHEDULERS = {each.lower(): each for each in schedulers.__all__}


def model(node: Any, path: str) -> Blueprint:
    return _beside(node, path, "name", lambda entry: {entry.name: entry.path})


def data_processor(node: Any, path: str) -> Blueprint:
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
    # On Python 3.10, dict[str, int] is an instance of type.
    if typing.get_origin(hint) is None and isinstance(hint, type) and not issubclass(hint, Mapping):
        config = Blueprint(path, hint, arguments)
        if fields_of(hint):
            config.make()  # find errors of a pydantic model before anything runs
        return Blueprint(path, function, {first: config})
    return Blueprint(path, function, {first: arguments})


def _registered(name: str, path: str, paths_of: Callable[[Any], dict[str, str]]) -> str:
    try:
        registry = import_name(f"{_REGISTRY}.registry")
    except ConfigError as error:
        reason = f"{path}: {name!r} is no import path, and the ModelZoo's registry cannot be used: {error.reason}"
        raise ConfigError(reason, f"{_IMPORT_PATH}, or install the package cerebras.modelzoo.") from error
    known: dict[str, str] = {}
    for each in registry.get_model_names():
        known |= paths_of(registry.get_model(each))
    if name not in known:
        remedy = suggestion(name, known, f"{_IMPORT_PATH}.")
        raise ConfigError(f"{path}: the ModelZoo's registry has no {name!r}.", remedy)
    return known[name]


# -- optimizers and schedulers -----------------------------------------------------------------------------------------


def optimizer(node: Any, path: str) -> Blueprint:
    """Return the blueprint of an optimizer; the ModelZoo's optimizers use its groups of parameters."""
    if (short := _short(node)) is None or is_import_path(short[0]):
        return named(node, path, home=torch.optim, given=_TO_OPTIMIZER)
    name, arguments = short
    name = _OPTIMIZERS.get(name.lower(), name)
    grouping = {key: arguments[key] for key in _GROUPING if arguments.get(key) is not None}
    arguments = {key: value for key, value in arguments.items() if key not in _GROUPING}
    of_torch = getattr(torch.optim, name, None)
    own = getattr(optimizers, name, None)
    if own is None or (not grouping and not _takes(own, arguments) and _takes(of_torch, arguments)):
        return named({name: arguments}, path, home=optimizers if of_torch is None else torch.optim, given=_TO_OPTIMIZER)
    made = named({name: arguments}, path, home=optimizers, given=("params",))
    check(grouping, _GROUPING, made.path)
    defaults = {each.name: each.default for each in inspect.signature(own).parameters.values()}
    grouping["weight_decay"] = {**defaults, **made.arguments}.get("weight_decay", 0.0)

    def grouped(model: torch.nn.Module) -> Any:
        return made.make(params=param_groups(model, **grouping))

    return Blueprint(made.path, grouped, {}, frozenset({"model"}))


def scheduler(node: Any, path: str, tags: Any = None) -> Blueprint:
    """Return the blueprint of a scheduler and its nested ones, which inherit ``tags`` unless they have their own."""
    if not _is_of_modelzoo(node):
        known = (short := _short(node)) is None or is_import_path(short[0]) or hasattr(_TORCH, short[0])
        return named(node, path, home=_TORCH if known else schedulers, given=_TO_SCHEDULER)
    name, arguments = _short(node) or ("", {})
    path = f"{path}.{name}"
    made = dict(arguments) if tags is None else {"param_group_tags": tags, **arguments}
    tags = made.get("param_group_tags")
    if isinstance(inner := made.get("schedulers"), list):
        made["schedulers"] = [
            scheduler(each, f"{path}.schedulers[{number}]", tags) for number, each in enumerate(inner)
        ]
    if "scheduler" in made:
        made["scheduler"] = scheduler(made["scheduler"], f"{path}.scheduler", tags)
    return blueprint(getattr(schedulers, _SCHEDULERS[name.lower()]), made, path, _TO_SCHEDULER)


def _is_of_modelzoo(node: Any) -> bool:
    short = _short(node)
    if short is None or short[0].lower() not in _SCHEDULERS:
        return False
    name, arguments = _SCHEDULERS[short[0].lower()], short[1]
    if not hasattr(_TORCH, name):
        return True
    if isinstance(inner := arguments.get("schedulers"), list):
        return any(map(_is_of_modelzoo, inner)) or not _takes(getattr(_TORCH, name), arguments)
    own, of_torch = getattr(schedulers, name), getattr(_TORCH, name)
    if _takes(own, arguments) or _takes(of_torch, arguments):
        return _takes(own, arguments)
    return _shared(own, arguments) > _shared(of_torch, arguments)  # report the error of the likelier class


def _short(node: Any) -> tuple[str, Mapping[str, Any]] | None:
    if isinstance(node, str):
        return node, {}
    if not isinstance(node, Mapping) or len(node) != 1:
        return None
    ((name, arguments),) = node.items()
    arguments = {} if arguments is None else arguments
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, Mapping) else None


def _takes(function: Any, arguments: Mapping[str, Any]) -> bool:
    """Return whether a class accepts these arguments and needs no others."""
    if function is None:
        return False
    parameters = [each for each in inspect.signature(function).parameters.values() if each.name not in _GIVEN]
    needed = {each.name for each in parameters if each.default is each.empty}
    return needed <= arguments.keys() <= {each.name for each in parameters}


def _shared(function: Any, arguments: Mapping[str, Any]) -> int:
    """Return how many of these arguments, or similar ones, a class has."""
    names = [*inspect.signature(function).parameters]
    return sum(bool(difflib.get_close_matches(each, names, 1)) for each in arguments)
