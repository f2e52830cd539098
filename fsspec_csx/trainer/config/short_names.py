"""Optimizers and schedulers that a configuration names without a module: the ModelZoo's, or else torch's.

A name that both have is the ModelZoo's, with its defaults, unless only torch's takes the arguments. The name of an
optimizer may be in lower case.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from fsspec_csx.trainer import optimizers, schedulers
from fsspec_csx.trainer.config.blueprint import Blueprint, blueprint, named

_OPTIMIZERS = {each.lower(): each for each in optimizers.__all__}
_GIVEN = ("params", "model", "optimizer")


def optimizer(node: Any, path: str, given: Iterable[str]) -> Blueprint:
    """The blueprint of an optimizer.

    Raises:
        ConfigError: see ``named``.
    """
    if (short := _short(node)) is None:
        return named(node, path, home=torch.optim, given=given)
    name, arguments = short
    name = _OPTIMIZERS.get(name.lower(), name) if name.islower() else name
    of_torch = getattr(torch.optim, name, None)
    own = name in optimizers.__all__ and (of_torch is None or _takes(getattr(optimizers, name), arguments))
    return named({name: arguments}, path, home=optimizers if own else torch.optim, given=given)


def scheduler(node: Any, path: str, given: Iterable[str]) -> Blueprint:
    """The blueprint of a scheduler, and of those that it is made of.

    Raises:
        ConfigError: see ``named``.
    """
    if not _is_of_modelzoo(node):
        return named(node, path, home=torch.optim.lr_scheduler, given=given)
    name, arguments = _short(node) or ("", {})
    path = f"{path}.{name}"
    made = dict(arguments)
    if isinstance(inner := made.get("schedulers"), list):
        made["schedulers"] = [
            scheduler(each, f"{path}.schedulers[{number}]", given) for number, each in enumerate(inner)
        ]
    if "scheduler" in made:
        made["scheduler"] = scheduler(made["scheduler"], f"{path}.scheduler", given)
    return blueprint(getattr(schedulers, name), made, path, given)


def _is_of_modelzoo(node: Any) -> bool:
    short = _short(node)
    if short is None or short[0] not in schedulers.__all__:
        return False
    name, arguments = short
    if not hasattr(torch.optim.lr_scheduler, name):
        return True
    if isinstance(inner := arguments.get("schedulers"), list):
        return any(map(_is_of_modelzoo, inner))
    return _takes(getattr(schedulers, name), arguments)


def _short(node: Any) -> tuple[str, Mapping[str, Any]] | None:
    """A name alone and its arguments."""
    if isinstance(node, str):
        return node, {}
    if not isinstance(node, Mapping) or len(node) != 1:
        return None
    ((name, arguments),) = node.items()
    arguments = {} if arguments is None else arguments
    return (name, arguments) if isinstance(name, str) and isinstance(arguments, Mapping) else None


def _takes(function: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether a class takes these arguments, and needs no others."""
    if function is None:
        return False
    parameters = [each for each in inspect.signature(function).parameters.values() if each.name not in _GIVEN]
    needed = {each.name for each in parameters if each.default is each.empty}
    return needed <= arguments.keys() <= {each.name for each in parameters}
