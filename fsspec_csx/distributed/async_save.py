"""``async_save``: copy this rank's tensors now, and save the sharded checkpoint in the background."""

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

from fsspec_csx.checkpoint import save_queue
from fsspec_csx.checkpoint.save_future import SaveFuture, SaveProgress
from fsspec_csx.distributed.api import agreeing, check_state_dict, joined, write
from fsspec_csx.distributed.paths import Path
from fsspec_csx.distributed.storage_writer import StorageWriter, copy_state_dict, nbytes
from fsspec_csx.formats.writer import CheckpointWriter, Target
from fsspec_csx.group.processes import translate_lost_process
from fsspec_csx.storage.paths import redacted
from fsspec_csx.storage.progress import AdvanceCallback
from fsspec_csx.tensors import torch_compat

_PLACE = "sharded checkpoints"  # one at a time: all ranks must save in the same order


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
    """Save like ``save``, but in the background; all ranks must call it, in the same order.

    Everything is copied before this returns, so the state dict may change afterwards; later saves reuse the memory, see
    ``fsspec_csx.release_buffers``. The ranks save in a thread, one save after the other. They communicate through a
    separate gloo group, which the first call creates.

    The arguments are those of ``save``. Nothing else may use the planner until the save has ended. The callback is
    called in another thread; by default no progress bar shows.

    Returns:
        The save's future. Ask each rank for its result before the process group is destroyed. An error of one rank,
        also in its copy or its credentials, is raised on all, and the old checkpoint stays. The same holds if the ranks
        save to different paths, or one skips a call. Until a rank has written its shard, it can cancel the save of all.
        A failure that is never retrieved is logged, see ``fsspec_csx.async_save``.

    Raises:
        TypeError: if the state dict is not a dict. With several ranks, the futures of all ranks raise this and the next
            three errors instead.
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CredentialsError: a PermissionError, if the credentials for an S3 path are missing.
        Exception: any error of a copy, such as of a value that cannot be copied.
        LostProcessError: a RuntimeError, if another rank has ended before the gloo group was created.
        RuntimeError: if the main thread has already ended.
    """
    group = background_group(process_group)
    progress = SaveProgress(callback or NoOpCallback(), 0)
    saving = _ShardedSave(f"{path}", planner, group)
    try:
        check_state_dict(state_dict)
        options: dict[str, Any] = {"overwrite": overwrite, "prefix_count": prefix_count}
        saving.writer = _BackgroundWriter(path, progress, storage_options=storage_options, **options)
        saving.staged = copy_state_dict(state_dict)
        saving.nbytes = nbytes(saving.staged)
    except Exception as error:
        if group is None or dist.get_world_size(group) == 1:
            raise
        saving.failure = error
    progress.set_size(saving.nbytes)
    future = _CollectiveFuture(progress)
    save_queue.add(save_queue.Save(future, Target(None, f"{path}", redacted(f"{path}")), _PLACE, saving))
    return future


class _CollectiveFuture(SaveFuture):
    """A save that still takes part if it is cancelled before it begins: the other ranks wait for it."""

    def cancel(self) -> bool:
        return self._owner == os.getpid() and self.progress.cancel()


class _BackgroundWriter(StorageWriter):
    """A writer that stops for a cancelled save, together with those of the other ranks."""

    def __init__(self, path: Path, progress: SaveProgress, **options: Any) -> None:
        super().__init__(path, **options)
        self.progress = progress
        if connect := getattr(self._folder.fs, "connect", None):
            connect()  # now, to use the current credentials

    def storage_meta(self) -> StorageMeta:
        """See ``StorageWriter``. torch calls this first, and passes its errors to all ranks."""
        self.progress.raise_if_cancelled()
        return super().storage_meta()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        written = super().write_data(plan, planner)
        self.progress.commit()
        self.progress.raise_if_cancelled()
        return written


class _ShardedSave(CheckpointWriter):
    """The part of one rank.

    Attributes:
        writer: of its shard.
        staged: the copy of the state dict.
        failure: the error that keeps this rank from saving; all ranks raise it, so that their calls stay in step.
    """

    def __init__(self, path: str, planner: SavePlanner | None, group: dist.ProcessGroup | None) -> None:
        self.writer: _BackgroundWriter | None = None
        self.failure: Exception | None = None
        self._planner, self._group = planner, group
        self.staged: dict[str, Any] = {}
        self.nbytes = 0
        self._path, self._call = path, ""
        if group is not None:
            _counts[group] = _counts.get(group, 0) + 1
            self._call = f", by call {_counts[group]}"

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        with agreeing(self._path, self._group, self._call):
            if self.failure is not None:
                raise self.failure
        writer = self.writer
        assert writer is not None
        writer._callback = AdvanceCallback(advance)
        write(self.staged, writer, self._planner, self._group)

    def free(self) -> None:
        self.staged, self._planner, self.writer = {}, None, None


_counts: weakref.WeakKeyDictionary[dist.ProcessGroup, int] = weakref.WeakKeyDictionary()  # number of calls on this rank
_groups: weakref.WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = weakref.WeakKeyDictionary()


def background_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """Return the gloo group of the same ranks for background saves; None if this process is alone."""
    group = joined(group)
    if group is None:
        return None
    if group not in _groups:
        ranks = dist.get_process_group_ranks(group)
        timeout = torch_compat.group_timeout(group)
        with translate_lost_process():
            _groups[group] = dist.new_group(ranks, timeout, "gloo", use_local_synchronization=True)
    return _groups[group]
