"""save, load and whole: sharded checkpoints at any path, by a call each."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from fsspec.callbacks import Callback, NoOpCallback
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner

from fsspec_csx.distributed.paths import Path, folder_at, shards_of
from fsspec_csx.distributed.planner import Planner
from fsspec_csx.distributed.storage_reader import StorageReader
from fsspec_csx.distributed.storage_writer import StorageWriter
from fsspec_csx.errors import LostProcessError
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.folder import MANIFEST
from fsspec_csx.formats.dcp.source import ShardedSource
from fsspec_csx.storage.progress import ProgressMeter, report_progress
from fsspec_csx.tensors.names import Keys


def save(
    state_dict: dict[str, Any],
    path: Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    callback: Callback | None = None,
) -> None:
    """Save a state dict, of which each rank writes its own shards; as ``dcp.save`` with a ``StorageWriter``.

    What was at the path before is replaced only by a whole checkpoint. What a sharded checkpoint cannot hold (sparse,
    quantized and nested tensors, those of the user's own classes, two entries whose dotted names are one) is refused
    before anything is written. Parameters come back as tensors.

    Args:
        state_dict: tensors, DTensors and values, nested as they may be; on every rank of the group.
        path: that of a folder: a local path or an fsspec URL.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        overwrite: whether a checkpoint that is there may be replaced.
        planner: plans as torch's default planner if not given: it spreads what is on all ranks over them. Of one that
            is given, this package checks sparse and quantized tensors alone.
        process_group: the ranks that take part; by default all, or this process alone where there are no others.
        callback: as of ``fsspec_csx.save``, of the bytes of this rank. The progress bar is that of the first rank.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        ValueError: if a sharded checkpoint cannot hold an entry, which it names.
        TypeError: if a value cannot be pickled.
        FileExistsError: if there is a checkpoint, unless ``overwrite``.
        LostProcessError: a RuntimeError, if another rank has ended, or does not answer in time.
        Exception: what went wrong on this rank, or else on the first one that failed.
    """
    with _reporting(callback, path, process_group) as progress:
        writer = StorageWriter(path, storage_options=storage_options, overwrite=overwrite, callback=progress)
        try:
            with unwrapped(process_group):
                state_dict_saver.save(
                    state_dict, storage_writer=writer, planner=planner or Planner(), process_group=process_group
                )
        except BaseException as error:
            cause = error.__cause__
            is_left = not writer.discard(cause.failures if isinstance(cause, CheckpointException) else ())
            if is_left and isinstance(error, LostProcessError):
                error.mark_maybe_applied("the save")
            raise


def load(
    state_dict: dict[str, Any],
    path: Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    weights_only: bool = True,
    planner: LoadPlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    callback: Callback | None = None,
) -> None:
    """Fill a state dict, of which each rank reads its own parts; as ``dcp.load`` with a ``StorageReader``.

    Args:
        state_dict: as of ``save``, sharded as it may be; tensors keep their memory, other values are replaced.
        path: as of ``save``.
        storage_options: as of ``save``.
        weights_only: if False, values that are no tensors may run any code: for checkpoints of authors whom you trust.
        planner: torch's default planner if not given.
        process_group: as of ``save``.
        callback: as of ``fsspec_csx.load``, of the bytes of this rank. The progress bar is that of the first rank.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if the checkpoint is damaged.
        UnsafeCheckpointError: a ValueError, if it names what may run code.
        LostProcessError: a RuntimeError, if another rank has ended, or does not answer in time.
        Exception: what else went wrong on this rank, or else on the first one that failed; FileNotFoundError if there
            is no checkpoint.
    """
    with _reporting(callback, path, process_group) as progress:
        reader = StorageReader(path, storage_options=storage_options, weights_only=weights_only, callback=progress)
        with unwrapped(process_group, reader):
            state_dict_loader.load(state_dict, storage_reader=reader, planner=planner, process_group=process_group)


def whole(
    path: Path,
    *,
    keys: Keys | None = None,
    map_location: torch.device | str | None = None,
    weights_only: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> dict[str, Any]:
    """All of a sharded checkpoint, or a part of it, as a nested state dict in this process alone.

    Integer keys that ``save`` wrote are integers again; those that torch's own planner wrote are strings.

    Args:
        path: as of ``save``.
        keys: as of ``fsspec_csx.load``.
        map_location: the device of the tensors; the CPU if not given.
        weights_only: if False, values that are no tensors may run any code: for checkpoints of authors whom you trust.
        storage_options: as of ``save``.
        callback: as of ``fsspec_csx.load``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CheckpointError: a ValueError, if the checkpoint is not what it should be, or has nothing of a name in ``keys``.
        OSError: whatever the filesystem raised, as it raised it; FileNotFoundError and others are among it.
    """
    folder = folder_at(path, storage_options)
    with report_progress(callback, folder.name) as progress, contextlib.closing(ShardedSource(folder)) as source:
        meter = ProgressMeter(progress, source.size)
        source.advance = meter.advance
        state: dict[str, Any] = source.load(keys=keys, map_location=map_location, weights_only=weights_only)
        meter.finish()
    return state


def leftovers(path: Path, *, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """The shards in a folder that no manifest names: of saves that were killed, or that are under way.

    Args:
        path: as of ``save``.
        storage_options: as of ``save``.

    Returns:
        The names of the files in the folder.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CheckpointError: a ValueError, if the manifest is not what it should be.
        OSError: whatever the filesystem raised, as it raised it.
    """
    folder = folder_at(path, storage_options)
    named = shards_of(manifest.read(folder)) if folder.exists(MANIFEST) else set()
    return [name for name in folder.shards() if name not in named]


@contextlib.contextmanager
def _reporting(callback: Callback | None, path: Path, group: dist.ProcessGroup | None) -> Iterator[Callback]:
    """The caller's callback, or a progress bar of the first rank alone."""
    joined = dist.is_available() and dist.is_initialized()
    if callback is None and joined and dist.get_rank(group):
        callback = NoOpCallback()
    with report_progress(callback, os.fspath(path)) as progress:
        yield progress


@contextlib.contextmanager
def unwrapped(group: dist.ProcessGroup | None, reader: StorageReader | None = None) -> Iterator[None]:
    """Let errors out as they were raised, and torch not warn of a process that is alone."""
    joined = dist.is_available() and dist.is_initialized()
    try:
        # All threads share the filters, so that they stay as they are where nothing is to be ignored.
        with contextlib.nullcontext() if joined else warnings.catch_warnings():
            if not joined:
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            yield
    except CheckpointException as error:
        failures = error.failures
        rank = dist.get_rank(group) if joined else 0
        own = failures.get(rank) or failures[min(failures)]
        raise (reader.failure if reader and reader.failure else own[0]) from error
    except RuntimeError as error:
        if not _is_of_a_collective(error):
            raise
        cause = re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0].rstrip(".")
        reason = f"Another process of this job has ended, or does not answer in time: {cause}."
        raise LostProcessError(reason, "Look at what the others told, and start the job again.") from error


def _is_of_a_collective(error: RuntimeError) -> bool:
    """Whether it was raised where processes exchange something, and not by what they run themselves."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    return last is not None and last.tb_frame.f_globals["__name__"] == "torch.distributed.distributed_c10d"
