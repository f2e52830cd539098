"""The states of schedulers in the ModelZoo's form, with their arguments, and back: only the step counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from typing import Any

import torch

from fsspec_csx.trainer import schedulers as own

_PARTS = {"optimizer", "param_group_tags", "schedulers", "scheduler", "learning_rates"}
_THERE = "_get_called_within_step"


def to_modelzoo(scheduler: Any, groups: list[dict[str, Any]]) -> Any:
    """The state of a scheduler; that of other schedulers than the ModelZoo's stays as it is.

    What it sets in the groups of the optimizer's state is a tensor there.
    """
    if not isinstance(scheduler, own.Scheduler):
        return scheduler.state_dict()
    state = _state(scheduler, scheduler.last_epoch)
    for group, value in zip(groups, state["_last_value"], strict=True):
        if value is not None:
            group[scheduler.key] = value
    return state


def from_modelzoo(scheduler: Any, state: Any) -> Any:
    """The state for a scheduler: of the ModelZoo's form only the step, which for torch's must be a number."""
    if isinstance(scheduler, own.Scheduler) or not isinstance(state, Mapping) or _THERE not in state:
        return state
    return {name: int(state[name]) for name in ("last_epoch", "_step_count") if name in state}


def _state(scheduler: own.Scheduler, step: int, *, nested: bool = False) -> dict[str, Any]:
    """The state at a step; a nested scheduler is never stepped there, so that it keeps its first value and count."""
    state = {each.name: getattr(scheduler, each.name) for each in fields(scheduler) if each.name not in _PARTS}
    if isinstance(scheduler, (own.LinearLR, own.LinearWD)):
        state |= {"power": 1.0, "cycle": False}
    if isinstance(scheduler, own.CyclicLR):
        state["step_size_down"] = scheduler.step_size_down or scheduler.step_size_up
    if isinstance(scheduler, (own.SequentialLR, own.PiecewiseConstantLR)):
        state["_milestones"] = state.pop("milestones")
    if scheduler.param_group_tags is None:
        state["param_group_tags"] = None  # others are a set there, which no file holds
    values = [
        scheduler.value_of(group, 0 if nested else step) if scheduler.applies_to(group) else None
        for group in scheduler.optimizer.param_groups
    ]
    return state | _position(step, values, state.get("total_iters"), nested) | _parts(scheduler, step)


def _position(step: int, values: list[float | None], total_iters: int | None, nested: bool) -> dict[str, Any]:
    return {
        "_last_value": [None if each is None else torch.tensor(float(each)) for each in values],
        "total_iters": total_iters,
        "last_epoch": torch.tensor(step),
        "_step_count": 1 if nested else step + 1,
        _THERE: False,
    }


def _parts(scheduler: own.Scheduler, step: int) -> dict[str, Any]:
    """The states of the schedulers that one is made of."""
    if isinstance(scheduler, own.ScalePerParamLR):
        scales = [group.get("adjust_learning_rate", 1.0) for group in scheduler.optimizer.param_groups]
        inner = _state(scheduler.scheduler, step, nested=True)
        del inner[_THERE]
        return {"lr_adjustment_scalars": scales, "_scheduler": inner}
    if isinstance(scheduler, own.ChainedScheduler):
        return {"_schedulers": [_state(each, step, nested=True) for each in scheduler.schedulers]}
    if not isinstance(scheduler, (own.SequentialLR, own.PiecewiseConstantLR)):
        return {}
    begins = [0, *(scheduler.milestones or [])]
    steps = [max(0, step - begin) for begin in begins]
    if isinstance(scheduler, own.SequentialLR):
        return {"_schedulers": [_state(*each, nested=True) for each in zip(scheduler.schedulers, steps, strict=True)]}
    lengths = [*(end - begin for begin, end in pairwise(begins)), None]
    states = []
    for rate, length, at in zip(scheduler.learning_rates, lengths, steps, strict=True):  # a sequence of constants there
        values = [rate if scheduler.applies_to(group) else None for group in scheduler.optimizer.param_groups]
        states.append({"learning_rate": rate, "param_group_tags": None, **_position(at, values, length, True)})
    return {"_schedulers": states}
