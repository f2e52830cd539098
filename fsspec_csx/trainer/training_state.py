"""The state of a training: collecting it for a checkpoint, reading it, and restoring it.

Its keys are the ModelZoo's ``model``, ``optimizer``, ``schedulers`` and ``global_step``. With ``batches`` and
``random_states`` of each process, a resumed training continues exactly.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.checkpoint.api import inspect, load
from fsspec_csx.errors import (
    CheckpointError,
    DtypeCastWarning,
    InvalidCheckpointError,
    MismatchError,
    MissingEntryError,
    UnsafeCheckpointError,
)
from fsspec_csx.storage.paths import redacted
from fsspec_csx.tensors import match
from fsspec_csx.tensors.names import few
from fsspec_csx.trainer import partial_states, processes, random_states, state_validation
from fsspec_csx.trainer.scheduler import Scheduler

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_DAMAGED = (CheckpointError, FileNotFoundError, IsADirectoryError)  # the last one: folders without a manifest
_OPTIMIZER = ("optimizer.state", "optimizer.param_groups")
# The ModelZoo pickles these sets of tags, which could run code. The optimizer and the schedulers keep their own tags.
_SETS = re.compile(r"optimizer\.param_groups\.\d+\.tags|schedulers\..*\bparam_group_tags")
_TRAINING = {"model", "optimizer", "schedulers", "global_step"}


def collect(trainer: Trainer, *, sharded: bool = False) -> dict[str, Any]:
    """Return the state of a training; all processes must call it. With ``sharded``, sharded tensors stay sharded."""
    state: dict[str, Any] = {"model": processes.unwrap(trainer.model).state_dict()}
    if trainer.optimizer is not None:
        state["optimizer"] = trainer.optimizer.state_dict()
    if not sharded:
        state = processes.gather_shards(state)
    if trainer.schedulers:
        state["schedulers"] = [each.state_dict() for each in trainer.schedulers]
    state["global_step"] = trainer.global_step
    if trainer.batches is not None:
        state["batches"] = processes.all_gather(trainer.batches.state_dict())
    state["random_states"] = processes.all_gather(random_states.capture())
    return state


def read(trainer: Trainer, path: str, states: list[str] | None) -> Any:
    """Read the named states of a checkpoint, or all for None; all processes must call it.

    Raises a CheckpointError if it is damaged, a MissingEntryError if it lacks a state.
    """
    wanted = _wanted(trainer, path, states)
    try:
        return _read(trainer, path, wanted)
    except UnsafeCheckpointError:
        return _read(trainer, path, lambda name: not _SETS.fullmatch(name) and (wanted is None or wanted(name)))


def _read(trainer: Trainer, path: str, wanted: Callable[[str], bool] | None) -> Any:
    if not processes.has_shards(trainer.model):
        return load(path, keys=wanted, map_location="cpu")
    from fsspec_csx.trainer import sharding  # only here, as it imports torch.distributed.checkpoint

    return sharding.load(trainer, path, wanted)


def read_if_whole(trainer: Trainer, path: str, states: list[str] | None) -> Any:
    """Like ``read``, but warn and return None if the checkpoint is damaged or incomplete for any process."""
    found, failed = None, False
    try:
        found = read(trainer, path, states)
    except MissingEntryError:  # the caller named a wrong state
        raise
    except _DAMAGED as error:
        failed = True
        trainer.logger.warning("%s is skipped: %s", redacted(path), error)
    (failed,) = processes.any_process(failed)
    return None if failed else found


def _wanted(trainer: Trainer, path: str, states: list[str] | None) -> Callable[[str], bool] | None:
    """Return a predicate for the names of entries to read; None for all."""
    spared = _OPTIMIZER if trainer.optimizer is None else ()
    if states is not None:
        info = inspect(path)
        held = [*dict.fromkeys(name.partition(".")[0] for name in (*info.tensors, *info.values))]
        if not _TRAINING.isdisjoint(held):  # otherwise it is the state dict of a model
            chosen = partial_states.chosen(states, held)
            return lambda name: name.partition(".")[0] in chosen and not name.startswith(spared)
    return (lambda name: not name.startswith(spared)) if spared else None


def restore(trainer: Trainer, state: dict[str, Any], path: str, *, strict: bool) -> None:
    """Restore the states of a checkpoint; ``state`` is consumed.

    With ``strict``, a MismatchError lists the tensors that do not match the model's. If a state is invalid, nothing is
    restored, and an InvalidCheckpointError is raised.
    """
    step = trainer.global_step
    optimizer = trainer.optimizer if "optimizer" in state else None
    if "global_step" in state:
        with state_validation.restoring(path, "global_step"):
            step = state_validation.to_count(state["global_step"])
    if optimizer is not None:
        with state_validation.restoring(path, "optimizer"):
            if isinstance(own := state["optimizer"], dict) and isinstance(own.get("state"), dict):
                own["state"] = {int(number): each for number, each in own["state"].items()}  # strings in a sharded one
            state_validation.check_optimizer(optimizer, own, path)
    if "schedulers" in state and trainer.optimizer is not None:
        _check_schedulers(trainer.schedulers, state["schedulers"], path)
    if "model" in state:
        with state_validation.restoring(path, "model"):
            _restore_model(processes.unwrap(trainer.model), state["model"], path, strict=strict)
    if optimizer is not None:
        with state_validation.restoring(path, "optimizer"):
            _restore_optimizer(optimizer, state["optimizer"], path)
    for scheduler, own in zip(trainer.schedulers, state.get("schedulers", ()), strict=False):
        with state_validation.restoring(path, "schedulers"):
            scheduler.load_state_dict(own)
    trainer.global_step = step


def restore_position(trainer: Trainer, state: dict[str, Any], path: str) -> None:
    """Restore the position in the data and the random states; an invalid one is an InvalidCheckpointError."""
    if trainer.batches is not None and "batches" in state:
        with state_validation.restoring(path, "batches"):
            trainer.batches.load_state_dict(processes.select_own(state["batches"]))
    if "random_states" in state:
        with state_validation.restoring(path, "random_states"):
            random_states.restore(processes.select_own(state["random_states"]))
        if len(state["random_states"]) != processes.count():  # otherwise some processes would draw the same numbers
            processes.reseed()


def as_training_state(found: Any, path: str) -> dict[str, Any]:
    """Return a checkpoint in the form of ``collect``; the state dict of a model becomes its ``model``.

    Raises an InvalidCheckpointError if it has neither form.
    """
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        return found
    if isinstance(found, dict) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
        return {"model": found}
    if isinstance(found, dict) and {"optimizer", "schedulers", "global_step"} & found.keys() and "model" not in found:
        return found
    reason = f"{redacted(path)} holds a {type(found).__name__}, not a training."
    raise InvalidCheckpointError(reason, "Give a checkpoint of a Trainer, or the state dict of a model.")


# -- the model ---------------------------------------------------------------------------------------------------------


def _restore_model(model: torch.nn.Module, state: dict[str, Any], path: str, *, strict: bool) -> None:
    if not all(isinstance(name, str) for name in state):
        raise state_validation.invalid(path, "model", "it has entries without a name")
    own = model.state_dict()
    tensors = {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = {
        name: f"{name} ({match.form(state[name])}, not {match.form(value).removeprefix('shape ')})"
        for name, value in tensors.items()
        if name in state and not _fits(state[name], value)
    }
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": [*shapes.values()]}
    lists = [f"{what}: {few(names, most=10)}" for what, names in problems.items() if names]
    if lists and strict:
        reason = f"{redacted(path)} does not fit the model. It has {'; '.join(lists)}."
        raise MismatchError(reason, "Load it into the model it is of, or set disable_strict_checkpoint_loading.")
    if lists:
        warnings.warn(f"{redacted(path)} does not fit the model: {'; '.join(lists)}. The rest is loaded.", stacklevel=2)
    fitting = {name: value for name, value in state.items() if name in own and name not in shapes}
    _cast(fitting, tensors, path)
    for name, like in tensors.items():  # in the same order in all processes
        if name in fitting:
            fitting[name] = processes.shard_like(fitting[name], like)
    model.load_state_dict(fitting, strict=False)


def _fits(value: Any, own: torch.Tensor) -> bool:
    return isinstance(value, torch.Tensor) and match.fits(value, own) and value.is_complex() <= own.is_complex()


def _cast(state: dict[str, Any], like: dict[str, torch.Tensor], path: str) -> None:
    """Cast the tensors of a state dict to the dtypes of ``like``, with one warning, as it takes time."""
    casts: Counter[tuple[torch.dtype, torch.dtype]] = Counter()
    begun = time.perf_counter()
    for name, target in like.items():
        value = state.get(name)
        if isinstance(value, torch.Tensor) and value.dtype != target.dtype:
            casts[value.dtype, target.dtype] += 1
            state[name] = value.to(target.dtype)
    if not casts:
        return
    seconds = time.perf_counter() - begun
    counts = ", ".join(f"{count} tensors of {_name(one)} to {_name(other)}" for (one, other), count in casts.items())
    common = _name(casts.most_common(1)[0][0][1])
    warnings.warn(
        f"{redacted(path)} has other dtypes than the model: {counts} were cast, in {seconds:.2f} s. To cast only once, "
        f"convert it: cszoo checkpoint convert {redacted(path)} NEW_PATH --dtype {common}",
        DtypeCastWarning,
        stacklevel=2,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# -- the optimizer -----------------------------------------------------------------------------------------------------


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: str) -> None:
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    options = [{*group} for group in optimizer.param_groups]
    try:
        for number, own in state["state"].items():
            if number < len(parameters):
                for name, value in own.items():
                    own[name] = processes.shard_like(value, parameters[number])
        optimizer.load_state_dict(state)
    except ValueError as error:
        reason = f"{redacted(path)} is of another optimizer: {error}."
        raise MismatchError(reason, state_validation.OTHER_OPTIMIZER) from error
    lost = {name for own, group in zip(options, optimizer.param_groups, strict=True) for name in own - {*group}}
    if lost:
        reason = f"{redacted(path)} is of another optimizer: it lacks {', '.join(sorted(lost))}."
        raise MismatchError(reason, state_validation.OTHER_OPTIMIZER)


# -- the schedulers ----------------------------------------------------------------------------------------------------


def _check_schedulers(schedulers: list[Any], states: Any, path: str) -> None:
    if not isinstance(states, (list, tuple)):
        raise state_validation.invalid(path, "schedulers", f"they are a {type(states).__name__}")
    if len(states) != len(schedulers):
        reason = f"{redacted(path)} has {len(states)} schedulers, and the training {len(schedulers)}."
        raise MismatchError(reason, "Use the schedulers it was saved with, or leave their states out.")
    for scheduler, state in zip(schedulers, states, strict=True):
        if isinstance(scheduler, (torch.optim.lr_scheduler.LRScheduler, Scheduler)):
            state_validation.check_attributes(scheduler, state, "schedulers", path)
