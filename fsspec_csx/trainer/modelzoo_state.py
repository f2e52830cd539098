"""Conversion of a training's state to the form of the ModelZoo's checkpoints, and back.

Names and forms are those of cerebras_pytorch 2.10. The additional key ``fsspec_csx`` holds the bytes of a torch file
with the position in the data, the random states, and values that the form cannot hold. The ModelZoo ignores the key;
with it, a training that resumes here continues exactly.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import reader
from fsspec_csx.formats.cerebras.writer import Plan
from fsspec_csx.storage.paths import redacted
from fsspec_csx.tensors.source import Source, memory_at
from fsspec_csx.trainer import modelzoo_optimizers, schedulers, state_validation

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_OWN = "fsspec_csx"
_SHARED = ("model", "optimizer", "schedulers", "global_step")
_SMALLER_PACKED = ("batches", "random_states")  # packed, they are a few S3 objects rather than ten for each process

# Attributes of schedulers that the ModelZoo's states lack, and an entry that only its states have.
_NESTED = {"optimizer", "param_group_tags", "schedulers", "scheduler", "learning_rates"}
_MARK = "_get_called_within_step"


def to_modelzoo(trainer: Trainer, state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the state of a training (see ``training_state.collect``) to the ModelZoo's form."""
    found = dict(state)
    if trainer.optimizer is not None and "optimizer" in state:
        found["optimizer"] = modelzoo_optimizers.to_modelzoo(trainer.optimizer, state["optimizer"])
        if "schedulers" in state:
            groups = found["optimizer"]["param_groups"]
            states = [_scheduler_to_modelzoo(each, groups) for each in trainer.schedulers]
            found["schedulers"] = [_holdable(each) for each in states]
    for key, value in state.items():
        if key not in _SHARED:
            found[key] = {_OWN: _packed(value)} if key in _SMALLER_PACKED else _holdable(value)
    return found


def from_modelzoo(trainer: Trainer, state: dict[str, Any], path: str) -> dict[str, Any]:
    """Convert a checkpoint from the ModelZoo's form to the state of a training; the Trainer's own form stays unchanged.

    Raises an InvalidCheckpointError if the additional data of this package are damaged.
    """
    found = {
        key: _unpacked(value, path) if key not in ("model", "optimizer") else value for key, value in state.items()
    }
    optimizer = found.get("optimizer")
    if trainer.optimizer is not None and isinstance(optimizer, Mapping):
        with state_validation.restoring(path, "optimizer"):
            step = found.get("global_step")
            found["optimizer"] = modelzoo_optimizers.from_modelzoo(trainer.optimizer, dict(optimizer), step)
    if isinstance(found.get("schedulers"), (list, tuple)):
        states = [_unpacked(each, path) for each in found["schedulers"]]
        pairs = zip([*trainer.schedulers, *(None for _ in states)], states, strict=False)
        with state_validation.restoring(path, "schedulers"):
            found["schedulers"] = [_scheduler_from_modelzoo(own, each) for own, each in pairs]
    return found


def _holdable(value: Any) -> Any:
    """Return a value that the format can hold: the value itself, or the bytes of a torch file."""
    try:
        Plan({_OWN: value})
    except ValueError:
        return {_OWN: _packed(value)}
    return value


def _packed(value: Any) -> torch.Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _unpacked(value: Any, path: str) -> Any:
    return _read(value[_OWN], path) if isinstance(value, Mapping) and [*value] == [_OWN] else value


def _read(packed: Any, path: str) -> Any:
    name = redacted(path)
    if not isinstance(packed, torch.Tensor) or packed.dtype != torch.uint8:
        raise InvalidCheckpointError(f"{name} is damaged: {_OWN} holds no bytes.", "Load another checkpoint.")
    data = bytes(memory_at(packed.data_ptr(), packed.nbytes, packed)) if packed.numel() else b""
    return reader.read(Source(io.BytesIO(data), len(data)), name=name, map_location="cpu")


def _scheduler_to_modelzoo(scheduler: Any, groups: list[dict[str, Any]]) -> Any:
    """Convert the state of one of the ModelZoo's schedulers; other states stay unchanged.

    In the ModelZoo, the values that a scheduler sets in the optimizer's groups are tensors; ``groups`` is changed so.
    """
    if not isinstance(scheduler, schedulers.Scheduler):
        return scheduler.state_dict()
    state = _scheduler_state(scheduler, scheduler.last_epoch)
    for group, value in zip(groups, state["_last_value"], strict=True):
        if value is not None:
            group[scheduler.key] = value
    return state


def _scheduler_from_modelzoo(scheduler: Any, state: Any) -> Any:
    """Return the state for a scheduler: only the step of the ModelZoo's form; torch's schedulers need a number."""
    if isinstance(scheduler, schedulers.Scheduler) or not isinstance(state, Mapping) or _MARK not in state:
        return state
    return {name: int(state[name]) for name in ("last_epoch", "_step_count") if name in state}


def _scheduler_state(scheduler: schedulers.Scheduler, step: int, *, nested: bool = False) -> dict[str, Any]:
    """Return the state at a step. The ModelZoo never steps nested schedulers: they keep their first value and count."""
    state = {each.name: getattr(scheduler, each.name) for each in fields(scheduler) if each.name not in _NESTED}
    if isinstance(scheduler, (schedulers.LinearLR, schedulers.LinearWD)):
        state |= {"power": 1.0, "cycle": False}
    if isinstance(scheduler, schedulers.CyclicLR):
        state["step_size_down"] = scheduler.step_size_down or scheduler.step_size_up
    if isinstance(scheduler, (schedulers.SequentialLR, schedulers.PiecewiseConstantLR)):
        state["_milestones"] = state.pop("milestones")
    if scheduler.param_group_tags is None:
        state["param_group_tags"] = None  # the ModelZoo has a set here, which no file can hold
    values = [
        scheduler.value_of(group, 0 if nested else step) if scheduler.applies_to(group) else None
        for group in scheduler.optimizer.param_groups
    ]
    return state | _position(step, values, state.get("total_iters"), nested) | _scheduler_parts(scheduler, step)


def _position(step: int, values: list[float | None], total_iters: int | None, nested: bool) -> dict[str, Any]:
    return {
        "_last_value": [None if each is None else torch.tensor(float(each)) for each in values],
        "total_iters": total_iters,
        "last_epoch": torch.tensor(step),
        "_step_count": 1 if nested else step + 1,
        _MARK: False,
    }


def _scheduler_parts(scheduler: schedulers.Scheduler, step: int) -> dict[str, Any]:
    if isinstance(scheduler, schedulers.ScalePerParamLR):
        scales = [group.get("adjust_learning_rate", 1.0) for group in scheduler.optimizer.param_groups]
        inner = _scheduler_state(scheduler.scheduler, step, nested=True)
        del inner[_MARK]
        return {"lr_adjustment_scalars": scales, "_scheduler": inner}
    if isinstance(scheduler, schedulers.ChainedScheduler):
        return {"_schedulers": [_scheduler_state(each, step, nested=True) for each in scheduler.schedulers]}
    if not isinstance(scheduler, (schedulers.SequentialLR, schedulers.PiecewiseConstantLR)):
        return {}
    begins = [0, *(scheduler.milestones or [])]
    steps = [max(0, step - begin) for begin in begins]
    if isinstance(scheduler, schedulers.SequentialLR):
        pairs = zip(scheduler.schedulers, steps, strict=True)
        return {"_schedulers": [_scheduler_state(*each, nested=True) for each in pairs]}
    lengths = [*(end - begin for begin, end in pairwise(begins)), None]
    states = []
    for rate, length, at in zip(scheduler.learning_rates, lengths, steps, strict=True):  # constants there
        values = [rate if scheduler.applies_to(group) else None for group in scheduler.optimizer.param_groups]
        states.append({"learning_rate": rate, "param_group_tags": None, **_position(at, values, length, True)})
    return {"_schedulers": states}
