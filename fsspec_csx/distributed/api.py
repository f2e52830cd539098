"""``save``, ``load`` and ``whole`` for sharded checkpoints at any fsspec path."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from fsspec.callbacks import Callback, NoOpCallback
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlanner
from torch.distributed.checkpoint.stateful import Stateful

from fsspec_csx.distributed.paths import Path, folder_at, shards_of
from fsspec_csx.distributed.planner import Planner
from fsspec_csx.distributed.storage_reader import StorageReader
from fsspec_csx.distributed.storage_writer import StorageWriter
from fsspec_csx.errors import LostProcessError
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.layout import MANIFEST
from fsspec_csx.formats.dcp.source import ShardedSource
from fsspec_csx.group.processes import Processes, together, translate_lost_process
from fsspec_csx.storage.paths import is_local, redacted
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
    prefix_count: int = 0,
    callback: Callback | None = None,
) -> None:
    """Save a state dict; each rank writes its own shards. Like ``dcp.save`` with a ``StorageWriter``.

    The old checkpoint is replaced only by a complete new one. Entries that a sharded checkpoint cannot hold are refused
    before anything is written: sparse, quantized and nested tensors, tensors of custom classes, and two entries with
    one dotted name. Parameters load as plain tensors.

    Args:
        state_dict: nested tensors, DTensors and values; on every rank of the group.
        path: a folder: a local path or an fsspec URL.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        overwrite: whether to replace an existing checkpoint.
        planner: by default torch's default planner, which distributes replicated entries over the ranks. With another
            planner, only sparse and quantized tensors are refused.
        process_group: the ranks that take part; by default all, or this process alone.
        prefix_count: over how many folders with hashed names to spread the shards, see ``StorageWriter``.
        callback: see ``fsspec_csx.save``; counts the bytes of this rank. The first rank shows the progress bar.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        ValueError: if the checkpoint cannot hold an entry, which the message names, or the paths of the ranks differ.
        TypeError: if a value cannot be pickled, or the state dict is not a dict.
        FileExistsError: if a checkpoint exists and ``overwrite`` is False.
        LostProcessError: a RuntimeError, if another rank has ended or does not respond in time.
        Exception: the error of this rank, or else of the first rank that failed.
    """
    with _reporting(callback, path, process_group) as progress:
        with agreeing(path, joined(process_group)):
            check_state_dict(state_dict)
            writer = StorageWriter(
                path, storage_options=storage_options, overwrite=overwrite, prefix_count=prefix_count, callback=progress
            )
        write(state_dict, writer, planner, process_group)


def check_state_dict(state_dict: object) -> None:
    if not isinstance(state_dict, Mapping):
        msg = f"A sharded checkpoint holds a dict, not a {type(state_dict).__name__}. Save it in a dict, or to a file."
        raise TypeError(msg)


@contextlib.contextmanager
def agreeing(path: Path, group: dist.ProcessGroup | None, call: str = "") -> Iterator[None]:
    """Begin a save on all ranks of a group together: an error in the block on one rank is raised on all.

    With ``group`` None, this process saves alone.

    Raises:
        ValueError: if the ranks have different paths, so that some shards would not lie beside the manifest, or
            different values of ``call``.
    """
    if group is None:
        yield
        return
    # A shared local folder may have different paths on different nodes.
    where = "" if is_local(path) else f" {redacted(os.fspath(path).rstrip('/'))}"
    processes = Processes(group)
    with processes.failing():
        yield
        processes.gather(f"save{where}{call}")


def write(
    state_dict: dict[str, Any],
    writer: StorageWriter,
    planner: SavePlanner | None,
    process_group: dist.ProcessGroup | None,
) -> None:
    """Save with a writer. See ``save`` for the arguments and errors."""
    planner = planner or Planner()
    try:
        if joined(None) is None:
            write_alone(state_dict, writer, planner)
            return
        with unwrap_errors(process_group):
            state_dict_saver.save(state_dict, storage_writer=writer, planner=planner, process_group=process_group)
    except BaseException as error:
        cause = error.__cause__
        is_left = not writer.discard(cause.failures if isinstance(cause, CheckpointException) else ())
        if is_left and isinstance(error, LostProcessError):
            error.mark_maybe_applied("the save")
        raise


def write_alone(
    state_dict: dict[str, Any],
    writer: StorageWriter,
    planner: SavePlanner,
    commit: Callable[[], object] = lambda: None,
) -> Metadata:
    """Save in this process alone; ``commit`` is called before the manifest is written.

    Some releases of torch cannot do this, and all change warning filters.
    """
    state = {key: each.state_dict() if isinstance(each, Stateful) else each for key, each in state_dict.items()}
    planner.set_up_planner(state, writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    (plan,) = writer.prepare_global_plan(plans)
    written = writer.write_data(planner.finish_plan(plan), planner)
    commit()
    writer.finish(metadata, [written.wait()])
    return metadata


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
    """Fill a state dict; each rank reads its own parts. Like ``dcp.load`` with a ``StorageReader``.

    Data that all ranks need is read once: the manifest, values, and tensors that are not DTensors. Each rank reads a
    share of it and sends it to the others. From a local path, each rank reads for itself.

    Args:
        state_dict: see ``save``, with any sharding; tensors keep their memory, other values are replaced.
        path: see ``save``; also a Hugging Face folder.
        storage_options, process_group: see ``save``.
        weights_only: if False, values may run any code: only for checkpoints of authors whom you trust.
        planner: by default torch's default planner.
        callback: see ``fsspec_csx.load``; counts the bytes of this rank. The first rank shows the progress bar.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CheckpointError: a ValueError, if the checkpoint is damaged, or a value could run code.
        LostProcessError: a RuntimeError, if another rank has ended or does not respond in time.
        Exception: any other error of this rank, or else of the first rank that failed, such as FileNotFoundError.
    """
    with _reporting(callback, path, process_group) as progress:
        options = {"storage_options": storage_options, "weights_only": weights_only, "callback": progress}
        group = joined(process_group)
        reader = StorageReader(path, **options, process_group=group)
        _fill(state_dict, reader, planner or DefaultLoadPlanner(), group)


def _fill(
    state_dict: dict[str, Any], reader: StorageReader, planner: LoadPlanner, group: dist.ProcessGroup | None
) -> None:
    """Fill a state dict on all ranks of a group, None for this process alone; an error of one rank is raised on all."""
    with contextlib.nullcontext() if group is None else together(group) as ranks:
        reader.ranks = ranks
        state = {
            key: each.state_dict() if isinstance(each := state_dict[key], Stateful) else each
            for key in sorted(state_dict, key=str)  # integers and strings; the order is that of all ranks
        }
        plan = _plan(state, reader, planner, ranks)
        reader.read_data(planner.finish_plan(plan), planner).wait()
    for key, value in state.items():
        if isinstance(each := state_dict[key], Stateful):
            each.load_state_dict(value)
        else:
            state_dict[key] = value


def _plan(state: dict[str, Any], reader: StorageReader, planner: LoadPlanner, ranks: Processes | None) -> LoadPlan:
    rank = ranks.rank if ranks else 0
    metadata, is_common = _metadata(reader, rank)
    planner.set_up_planner(state, metadata, rank == 0)
    reader.set_up_storage_reader(metadata, rank == 0, rank=rank, use_collectives=is_common)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    if type(planner).create_global_plan is DefaultLoadPlanner.create_global_plan:  # it changes no plan
        return plan
    if ranks is None or not is_common:
        return planner.create_global_plan([plan])[0]
    plans = ranks.gather("plan a load", plan)
    made: list[LoadPlan] = ranks.first("finish the plans", lambda: planner.create_global_plan(plans))
    return made[rank]


def _metadata(reader: StorageReader, rank: int) -> tuple[Metadata, bool]:
    """Read the manifest of all ranks, or else this rank's own, of a save without collectives."""
    try:
        return reader.read_metadata(), True
    except FileNotFoundError as error:
        try:
            return reader.read_metadata(rank=rank), False
        except FileNotFoundError:
            raise error from None


def whole(
    path: Path,
    *,
    keys: Keys | None = None,
    map_location: torch.device | str | None = None,
    weights_only: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> dict[str, Any]:
    """Load all or part of a sharded checkpoint as a nested state dict, in this process alone.

    Integer keys load as integers; torch's planner writes them as strings. For the arguments see ``fsspec_csx.load``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CheckpointError: a ValueError, if the checkpoint is invalid, or has no entry with a name in ``keys``.
        OSError: any error of the filesystem, unchanged, such as FileNotFoundError.
    """
    folder = folder_at(path, storage_options)
    with report_progress(callback, folder.name) as progress, contextlib.closing(ShardedSource(folder)) as source:
        meter = ProgressMeter(progress, source.size)
        state: dict[str, Any] = source.state.read(
            keys=keys, map_location=map_location, weights_only=weights_only, advance=meter.advance
        )
        meter.finish()
    return state


def leftovers(path: Path, *, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """List the names of shards that the manifest of a checkpoint does not name: those of killed or running saves.

    For the arguments see ``save``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CheckpointError: a ValueError, if the manifest is invalid.
        OSError: any error of the filesystem, unchanged.
    """
    folder = folder_at(path, storage_options)
    named = shards_of(manifest.read(folder)) if folder.exists(MANIFEST) else set()
    return [name for name in folder.shards() if name not in named]


def joined(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """Return the ranks that take part; None for this process alone."""
    return (group or dist.group.WORLD) if dist.is_available() and dist.is_initialized() else None


def _reporting(
    callback: Callback | None, path: Path, group: dist.ProcessGroup | None
) -> contextlib.AbstractContextManager[Callback]:
    if callback is None and joined(group) is not None and dist.get_rank(group):
        callback = NoOpCallback()
    return report_progress(callback, os.fspath(path))


@contextlib.contextmanager
def unwrap_errors(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Raise the original error of a rank in place of torch's CheckpointException."""
    try:
        with translate_lost_process():
            yield
    except CheckpointException as error:
        failures = error.failures
        raise (failures.get(dist.get_rank(group)) or failures[min(failures)])[0] from error
