"""Reading a checkpoint to resume from, without the states that are not needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fsspec_csx.checkpoint.api import inspect, load
from fsspec_csx.errors import CheckpointError, MissingEntryError, UnsafeCheckpointError
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer import partial_states, processes

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_DAMAGED = (CheckpointError, FileNotFoundError, IsADirectoryError)  # the last for folders without a manifest
_OPTIMIZER = ("optimizer.state", "optimizer.param_groups")
# The ModelZoo pickles these sets of tags, which could run code; the optimizer and the schedulers have their own.
_SETS = re.compile(r"optimizer\.param_groups\.\d+\.tags|schedulers\..*\bparam_group_tags")
_TRAINING = {"model", "optimizer", "schedulers", "global_step"}


def read(trainer: Trainer, path: str, states: list[str] | None) -> Any:
    """Read the states of a checkpoint that are named, or all for None; all processes must call it.

    Raises:
        CheckpointError: a ValueError, if it is damaged.
        MissingEntryError: a KeyError, if it lacks a state.
        OSError: an error of the filesystem.
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
    """Like ``read``; None, with a warning, if the checkpoint is damaged or incomplete for any process."""
    error: Exception | None = None
    found = None
    try:
        found = read(trainer, path, states)
    except MissingEntryError:  # the name of a state is wrong
        raise
    except _DAMAGED as damage:
        error = damage
        trainer.logger.warning("%s is passed over: %s", redacted(path), error)
    (failed,) = processes.any_process(error is not None)
    return None if failed else found


def _wanted(trainer: Trainer, path: str, states: list[str] | None) -> Callable[[str], bool] | None:
    """A predicate for the names of entries to read; None for all."""
    spared = _OPTIMIZER if trainer.optimizer is None else ()
    if states is not None:
        info = inspect(path)
        held = [*dict.fromkeys(name.partition(".")[0] for name in (*info.tensors, *info.values))]
        if not _TRAINING.isdisjoint(held):  # else it is the state dict of a model
            chosen = partial_states.chosen(states, held)
            return lambda name: name.partition(".")[0] in chosen and not name.startswith(spared)
    return (lambda name: not name.startswith(spared)) if spared else None
