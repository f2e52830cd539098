"""The parts of a configuration that name classes: how to read, create and check each one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

import fsspec_csx.trainer as trainer_module
from fsspec_csx.errors import ConfigError
from fsspec_csx.settings import backends
from fsspec_csx.trainer.callback import Callback
from fsspec_csx.trainer.checkpointing import Checkpoint
from fsspec_csx.trainer.config import modelzoo
from fsspec_csx.trainer.config.blueprint import Blueprint, named
from fsspec_csx.trainer.flags import Flags
from fsspec_csx.trainer.loggers import Logger, Logging
from fsspec_csx.trainer.loop import TrainingLoop, ValidationLoop
from fsspec_csx.trainer.precision import MixedPrecision, Precision
from fsspec_csx.trainer.scheduler import Scheduler
from fsspec_csx.trainer.schedulers import ScalePerParamLR


@dataclass(frozen=True)
class Part:
    """A part of a configuration that names a class."""

    kind: Any  # the class of the object, or several possible ones
    default: Callable[..., Any] | None = None  # the class if none is named
    several: bool | None = False  # whether it is a list; None for either
    reader: Callable[[Any, str], Blueprint] | None = None  # reads the blueprint in place of ``named``


INIT = {
    "model": Part(torch.nn.Module, reader=modelzoo.model),
    "optimizer": Part(torch.optim.Optimizer, reader=modelzoo.optimizer),
    "schedulers": Part(object, several=True, reader=modelzoo.scheduler),
    "precision": Part(Precision, default=MixedPrecision),
    "loop": Part((TrainingLoop, ValidationLoop), default=TrainingLoop),
    "checkpoint": Part(Checkpoint, default=Checkpoint),
    "logging": Part(Logging, default=Logging),
    "callbacks": Part(Callback, several=True),
    "loggers": Part(Logger, several=True),
}
_ABSENT = {
    "BigCodeEvalHarness": "it evaluates models of the ModelZoo by its own Trainer",
    "EleutherEvalHarness": "it evaluates models of the ModelZoo by its own Trainer",
    "Lora": "it replaces layers of the ModelZoo",
}
LOADER = Part(Iterable, several=None, reader=modelzoo.data_processor)
LOADERS = {
    "fit": {"train_dataloader": replace(LOADER, several=False), "val_dataloader": LOADER},
    "validate": {"val_dataloader": LOADER},
    "validate_all": {"val_dataloaders": LOADER},
}


def parsed(node: Mapping[str, Any], parts: Mapping[str, Part], path: str) -> dict[str, Any]:
    """Return a mapping with blueprints in place of its parts."""
    return {
        key: each if each is None or key not in parts else read(each, f"{path}.{key}", parts[key])
        for key, each in node.items()
    }


def read(node: Any, path: str, part: Part) -> Blueprint | list[Blueprint]:
    """Return the blueprint of a part, or those of its elements; an element ``{Name: null}`` is left out."""

    def one(node: Any, path: str) -> Blueprint:
        if part.reader is not None:
            return part.reader(node, path)
        if isinstance(node, Mapping) and (name := next((each for each in node if each in _ABSENT), None)):
            raise ConfigError(f"{path}.{name} is not supported: {_ABSENT[name]}.", "Remove it.")
        return named(node, path, home=trainer_module, default=part.default)

    if part.several is False or (part.several is None and not isinstance(node, list)):
        return one(node, path)
    if not isinstance(node, list):
        raise ConfigError(f"{path} is not a list.", "Give a list of classes, such as [{ClassName: {}}].")
    return [
        one(each, f"{path}[{number}]")
        for number, each in enumerate(node)
        if part.reader is not None or not (isinstance(each, Mapping) and [*each.values()] == [None])
    ]


def make(plan: Blueprint | list[Blueprint], part: Part, **given: Any) -> Any:
    """Create the object of a part; raise a ConfigError if it has another class, or its class refuses the arguments."""
    if isinstance(plan, list):
        return [make(each, part, **given) for each in plan]
    made = plan.make(**given)
    if part.kind is Iterable:
        made = modelzoo.as_loader(made)
    if not isinstance(made, part.kind):
        kinds = part.kind if isinstance(part.kind, tuple) else (part.kind,)
        wanted = " or ".join(each.__name__ for each in kinds)
        raise ConfigError(f"{plan.path} gives no {wanted}, but {type(made).__name__}.", "Name a class that does.")
    if isinstance(made, Flags):
        try:
            with backends.scoped_flags(made.flags):
                pass
        except (LookupError, TypeError, ValueError) as error:
            raise plan.refused(error) from error
    return made


def made_by_trainer(name: str, plan: Any, part: Part) -> Any:
    """Return a part of ``init`` as a Trainer argument: functions for the model, the optimizer and the schedulers.

    The Trainer sets the seed and calls them in this order, with the model for the optimizer, and so on.
    """
    if name == "model":
        return partial(make, plan, part)
    if name == "optimizer":
        return lambda model: make(plan, part, params=model.parameters(), model=model)
    if name == "schedulers":
        return [partial(_scheduler, each, part) for each in plan]
    return make(plan, part)


def _scheduler(plan: Blueprint, part: Part, optimizer: torch.optim.Optimizer) -> Any:
    """Create a scheduler; the ModelZoo's schedulers of learning rates also use the factors of the groups."""
    made = make(plan, part, optimizer=optimizer)
    scales = any("adjust_learning_rate" in each for each in optimizer.param_groups)
    if scales and isinstance(made, Scheduler) and made.key == "lr" and not isinstance(made, ScalePerParamLR):
        return ScalePerParamLR(optimizer, made, param_group_tags=made.param_group_tags)
    return made
