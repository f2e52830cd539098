"""The states of schedulers in the ModelZoo's form, with their arguments, and back: only the step counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from fsspec_csx.trainer.schedulers import (
    ChainedScheduler,
    LinearLR,
    PiecewiseConstantLR,
    ScalePerParamLR,
    Scheduler,
    SequentialLR,
)

_ATTRIBUTES = {"optimizer", "param_group_tags", "schedulers", "scheduler"}
_THERE = "_get_called_within_step"


def to_modelzoo(scheduler: Any, rates: Sequence[Any]) -> Any:
    """The state of a scheduler; that of other schedulers than the ModelZoo's stays as it is.

    Args:
        scheduler: the scheduler.
        rates: the learning rate of each group, as the optimizer's state has it.
    """
    if not isinstance(scheduler, Scheduler):
        return scheduler.state_dict()
    state = _state(scheduler, scheduler.last_epoch)
    if scheduler.key == "lr":
        state["_last_value"] = [
            rate if value is not None else None for rate, value in zip(rates, state["_last_value"], strict=True)
        ]
    return state


def from_modelzoo(scheduler: Any, state: Any) -> Any:
    """The state for a scheduler: of the ModelZoo's form only the step, which for torch's must be a number."""
    if isinstance(scheduler, Scheduler) or not isinstance(state, Mapping) or _THERE not in state:
        return state
    return {name: int(state[name]) for name in ("last_epoch", "_step_count") if name in state}


def _state(scheduler: Scheduler, step: int) -> dict[str, Any]:
    own = {each.name: getattr(scheduler, each.name) for each in fields(scheduler) if each.name not in _ATTRIBUTES}
    if isinstance(scheduler, LinearLR):
        own["power"] = 1.0
    if scheduler.param_group_tags is None:
        own["param_group_tags"] = None  # others are a set there, which no file holds
    own["_last_value"] = [
        torch.tensor(float(scheduler.value_of(group, step))) if scheduler.applies_to(group) else None
        for group in scheduler.optimizer.param_groups
    ]
    own |= {"total_iters": getattr(scheduler, "total_iters", None), "last_epoch": torch.tensor(step)}
    own |= {"_step_count": step + 1, _THERE: False}
    if isinstance(scheduler, ScalePerParamLR):
        groups = scheduler.optimizer.param_groups
        own["adjustment_scalars"] = [group.get("adjust_learning_rate", 1.0) for group in groups]
        own["_scheduler"] = _state(scheduler.scheduler, step)
    elif isinstance(scheduler, ChainedScheduler):
        own["_schedulers"] = [_state(each, step) for each in scheduler.schedulers]
    elif isinstance(scheduler, SequentialLR):
        own["_milestones"] = own.pop("milestones")
        begins = [0, *own["_milestones"]]
        pairs = zip(scheduler.schedulers, begins, strict=True)
        own["_schedulers"] = [_state(each, max(0, step - begin)) for each, begin in pairs]
    elif isinstance(scheduler, PiecewiseConstantLR):  # a sequence there
        begins = [0, *scheduler.milestones]
        own["_schedulers"] = [{"last_epoch": torch.tensor(max(0, step - begin))} for begin in begins]
    return own
