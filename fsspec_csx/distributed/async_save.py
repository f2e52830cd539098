"""async_save: copy this rank's tensors now, and save the sharded checkpoint while the training continues."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from fsspec.callbacks import Callback, NoOpCallback
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from fsspec_csx.checkpoint import async_save as saves
from fsspec_csx.checkpoint.save_future import SaveFuture, SaveProgress
from fsspec_csx.distributed.api import check_state_dict, write
from fsspec_csx.distributed.paths import Path
from fsspec_csx.distributed.staging import nbytes, stage
from fsspec_csx.distributed.storage_writer import StorageWriter
from fsspec_csx.formats.writer import CheckpointWriter, Target
from fsspec_csx.group.processes import translate_lost_process
from fsspec_csx.tensors import torch_compat

_PLACE = "sharded checkpoints"  # one after the other: all ranks must save them in one order


def async_save(
    state_dict: dict[str, Any],
    path: Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    planner: SavePlanner | None = None,
    process_group: dist.ProcessGroup | None = None,
    prefix_count: int = 0,
    callback: Callback | None = None,
) -> SaveFuture:
    """Save like ``save``, but in the background; all ranks must call it, in one order.

    Everything is copied before this returns, so the state dict may change; the copies' memory is used again, see
    ``fsspec_csx.release_buffers``. The ranks then save in a thread, and talk to each other through a gloo group that
    nothing else uses, made at the first call. Saves run one after the other.

    Args:
        state_dict: see ``save``.
        path: see ``save``.
        storage_options: see ``save``.
        overwrite: see ``save``.
        planner: see ``save``; nothing else may use it until the save has ended.
        process_group: see ``save``.
        prefix_count: see ``save``.
        callback: see ``save``; called in another thread. Without one no progress bar shows.

    Returns:
        The save's future; ask each rank for its result before the process group is destroyed. An error of one rank, of
        its copy too, is that of all, and the old checkpoint stays. Until a rank has written its shard, it can cancel
        the save of all. A failure that is never retrieved is logged, see ``fsspec_csx.async_save``.

    Raises:
        TypeError: if the state dict is no dict.
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CredentialsError: a PermissionError, if the credentials for an S3 path are missing.
        LostProcessError: a RuntimeError, if another rank has ended before the gloo group was made.
        RuntimeError: if the main thread has already ended.
    """
    check_state_dict(state_dict)
    progress = SaveProgress(callback or NoOpCallback(), 0)
    writer = _BackgroundWriter(
        path, progress, storage_options=storage_options, overwrite=overwrite, prefix_count=prefix_count
    )
    saving = _ShardedSave(state_dict, writer, planner, background_group(process_group))
    progress.set_size(saving.nbytes)
    future = _CollectiveFuture(progress)
    saves.add_save(future, saving, os.fspath(path), _PLACE)
    return future


class _CollectiveFuture(SaveFuture):
    """A save that this rank cannot leave before it has begun: the others would wait for it."""

    def cancel(self) -> bool:
        return self._owner == os.getpid() and self.progress.cancel()


class _BackgroundWriter(StorageWriter):
    """A writer that stops for a cancelled save, or for a copy that failed, together with those of the other ranks."""

    failure: Exception | None = None

    def __init__(self, path: Path, progress: SaveProgress, **options: Any) -> None:
        super().__init__(path, **options)
        self.progress = progress
        if connect := getattr(self._folder.fs, "connect", None):
            connect()  # now, with the credentials of this moment

    def storage_meta(self) -> StorageMeta:
        """See ``StorageWriter``; the first thing that torch asks for, and whose errors reach all ranks."""
        if self.failure is not None:
            raise self.failure
        self.progress.raise_if_cancelled()
        return super().storage_meta()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """See ``StorageWriter``."""
        written = super().write_data(plan, planner)
        self.progress.commit()
        self.progress.raise_if_cancelled()
        return written


class _ShardedSave(CheckpointWriter):
    """The part of one rank."""

    def __init__(
        self,
        state_dict: dict[str, Any],
        writer: _BackgroundWriter,
        planner: SavePlanner | None,
        group: dist.ProcessGroup | None,
    ) -> None:
        self._writer, self._planner, self._group = writer, planner, group
        self._staged: dict[str, Any] = {}
        try:
            self._staged = stage(state_dict)
        except Exception as error:  # the other ranks are to hear of it
            writer.failure = error
        self.nbytes = nbytes(self._staged)

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        """See ``CheckpointWriter``."""
        self._writer._callback = _Advancing(advance)
        write(self._staged, self._writer, self._planner, self._group)

    def free(self) -> None:
        """See ``CheckpointWriter``."""
        self._staged, self._planner = {}, None


class _Advancing(Callback):  # type: ignore[misc]
    """Hands on how many bytes were written."""

    def __init__(self, advance: Callable[[int], object]) -> None:
        super().__init__()
        self._advance = advance

    def relative_update(self, inc: int = 1) -> None:
        self._advance(inc)


_groups: weakref.WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = weakref.WeakKeyDictionary()


def background_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The gloo group of the same ranks for saves in the background; None if this process is alone."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    group = group or dist.group.WORLD
    assert group is not None
    if group not in _groups:
        ranks = dist.get_process_group_ranks(group)
        timeout = torch_compat.group_timeout(group)
        with translate_lost_process():
            _groups[group] = dist.new_group(ranks, timeout, "gloo", use_local_synchronization=True)
    return _groups[group]
