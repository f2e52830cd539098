"""async_save: copy the tensors now, and write the checkpoint in a thread while the training continues."""

from __future__ import annotations

import concurrent.futures.thread
import logging
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.callbacks import Callback, NoOpCallback

from fsspec_csx.checkpoint.exit_status import note_failure
from fsspec_csx.checkpoint.save_future import SaveFuture, SaveProgress, log_unretrieved
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.files import resolve_path, unwrap_filesystem
from fsspec_csx.storage.paths import checkpoint_path, redacted
from fsspec_csx.storage.progress import ProgressMeter

if TYPE_CHECKING:
    from fsspec_csx.checkpoint.local_tier import LocalTier
    from fsspec_csx.formats.writer import CheckpointWriter

logger = logging.getLogger("fsspec_csx")

_MAX_THREADS = 2


def async_save(
    obj: object,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    local: str | os.PathLike[str] | None = None,
    keep_local: int = 2,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> SaveFuture:
    """Save like ``save``, but write the file in the background.

    Everything is copied before this returns, from GPUs into pinned memory, so the object may change; the credentials
    are those of the call, too. Each save needs the memory of its tensors until it ends; the next save uses it again,
    see ``release_buffers``.

    Saves to one path run one after the other in the order of the calls, and two saves to different paths run at a time.
    With a concurrent ``save`` to the same path, the last to end wins. The interpreter waits for its saves at exit;
    Ctrl-C stops them. A forked child does not inherit them.

    With ``local`` the checkpoint is written to a local disk first, which frees the copy, and uploaded from there, in
    the order of the saves. The future's ``local`` ends when the local file is whole: if the process is killed then,
    the next ``async_save`` to the same two folders uploads what was left, and resumes interrupted uploads to S3. If
    two saves have not ended, the call waits for the first. If the disk is full or not writable, the checkpoint goes
    straight to its path, with a warning. A cancelled save may stay on the disk, and is uploaded later.

    Args:
        obj: see ``save``.
        path: see ``save``.
        format: see ``save``.
        max_shard_size: see ``save``.
        local: a folder on a local disk; the checkpoints of each remote folder have a folder of their own there. For the
            formats of one file, torch and safetensors. ``load(path, local=…)`` reads them.
        keep_local: how many checkpoints of one remote folder to keep there, besides those that are not uploaded.
        storage_options: see ``save``.
        callback: see ``save``; called in another thread. Without one no progress bar shows.

    Returns:
        The save's future. If the save fails and its result is never retrieved, the failure is logged as an error,
        and the interpreter exits with status 120 (even after ``sys.exit(3)``), or 1 if an exception ended it. Children
        that multiprocessing forks keep their own status.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CredentialsError: a PermissionError, if the credentials for an S3 path are missing.
        ValueError: if the format cannot hold the object, see ``save``, or is of more than one file with ``local``.
        RuntimeError: if the main thread has already ended.
        Exception: any error of pickle for an object that cannot be saved.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats import registry  # only here, as the formats import torch

    fs, inner = resolve_path(path, text, storage_options)
    if fs is None:
        inner = os.path.join(os.getcwd(), inner)
    behind, place, _ = unwrap_filesystem(fs, inner)
    if connect := getattr(behind, "connect", None):
        connect()  # now, with the credentials of this moment
    tier = None if local is None else _local_tier(text, local, keep_local, storage_options)
    saving = registry.writer(obj, text, format, copied=True, max_shard_size=max_shard_size)
    future = SaveFuture(SaveProgress(callback or NoOpCallback(), saving.nbytes))
    save = _Save(future, fs, inner, text, os.path.realpath(place) if fs is None else place, saving)
    _saves.add(save if tier is None else _local_first(tier, save))
    return future


def release_buffers() -> None:
    """Give the memory of earlier copies back to the system, after the last ``async_save``.

    The memory of a save that has ended is kept for the next, as to touch new memory takes several times as long as to
    copy into it: that of two saves at most, until none was used for half an hour. Pinned memory is kept by torch.
    """
    if "torch" in sys.modules:
        from fsspec_csx.tensors import snapshot

        snapshot.release()


# -- by way of a local disk --------------------------------------------------------------------------------------------


def upload_left(path: str, local: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> SaveFuture:
    """Upload a checkpoint that a process left on the local disk, as ``async_save`` would have.

    The save is cancelled, with a warning, if the local file is damaged, or there is another one at the path.
    """
    from fsspec_csx.checkpoint.local_tier import tier_of  # only here, as these import awscrt
    from fsspec_csx.checkpoint.local_writers import Upload

    tier, target = tier_of(path, local, options)
    name = target.path.rpartition("/")[2]
    progress = SaveProgress(NoOpCallback(), os.path.getsize(tier.path_of(name)))
    future = SaveFuture(progress)
    saving = Upload(tier, name, pass_over=progress.cancel)
    tier.add(name, future)
    _saves.add(_Save(future, target.fs, target.path, path, tier.folder, saving))
    return future


def _local_tier(text: str, local: str | os.PathLike[str], keep: int, options: Mapping[str, Any] | None) -> LocalTier:
    """The tier for a save, with room for one."""
    from fsspec_csx.checkpoint.local_tier import check_local, tier_of  # only here, as it imports awscrt

    check_local(local, keep)
    tier, target = tier_of(text, local, options)
    tier.keep = keep
    name = target.path.rpartition("/")[2]
    for left in tier.take_left():
        upload_left(text.removesuffix(name) + left, local, options)
    tier.wait_for_room(name)
    return tier


def _local_first(tier: LocalTier, save: _Save) -> _Save:
    """The first half of a save: to the local disk, which adds the second one, the upload."""
    from fsspec_csx.checkpoint.local_writers import LocalWriter  # only here, as it imports awscrt

    def upload(saving: CheckpointWriter) -> None:
        _saves.add(replace(save, place=tier.folder, saving=saving))

    def end() -> None:
        save.future.progress.relative_update(save.saving.nbytes)
        save.future.end(None, save.text)

    name = save.path.rpartition("/")[2]
    writer = LocalWriter(tier, name, save.saving, upload, end)
    first = SaveFuture(SaveProgress(NoOpCallback(), writer.nbytes))
    save.future.follow(first, save.text)
    tier.add(name, save.future)
    return replace(save, future=first, place=f"{tier.folder}/", saving=writer)


def add_save(future: SaveFuture, saving: CheckpointWriter, text: str, place: str) -> None:
    """Run a save of another kind in the background; those of one place run one after the other."""
    _saves.add(_Save(future, None, text, text, place, saving))


# -- the threads -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Save:
    """A save that has not ended.

    Attributes:
        future: the one that the caller has.
        fs: the filesystem; None for the local one.
        path: the path on it.
        text: the caller's path.
        place: equal for saves that must not overtake each other.
        saving: what is to be written.
    """

    future: SaveFuture
    fs: fsspec.AbstractFileSystem | None
    path: str
    text: str
    place: str
    saving: CheckpointWriter

    def run(self) -> None:
        """Save, free the copy, and end the future in any case."""
        if not self.future.set_running_or_notify_cancel():
            return
        error = self._failure()
        self.saving.free()
        _free_frames(error)
        try:
            self.future.end(error, self.text)
        except BaseException:  # raised by a done callback: other saves continue
            logger.exception("A callback of the save to %s failed", redacted(self.text))
        del self, error  # the error's traceback leads here, and from here back to it

    def _failure(self) -> BaseException | None:
        try:
            self._write(self.future.progress)
        except BaseException as error:
            return error
        return None

    def _write(self, progress: SaveProgress) -> None:
        meter = ProgressMeter(progress, self.saving.nbytes, estimated=True)

        def advance(count: int) -> None:
            progress.raise_if_cancelled()
            meter.advance(count)

        def commit() -> None:
            progress.commit()
            progress.raise_if_cancelled()

        self.saving.save(Target(self.fs, self.path, redacted(self.text)), advance=advance, commit=commit)
        meter.finish()


def _report_interrupted(save: _Save) -> None:
    note_failure()
    logger.error("%s was not saved: interrupted", redacted(save.text))


def _free_frames(error: BaseException | None) -> None:
    """Free the local variables, such as tensors, of the functions that an error passed through."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class _Saves:
    """The queue of saves, and the threads that write them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[_Save] = []
        self._running: list[_Save] = []
        self._threads = 0
        self._closed = False
        self._stopped = False

    def add(self, save: _Save) -> None:
        with self._changed:
            if self._closed:
                msg = "The interpreter is ending and starts no saves. Call async_save before the main thread ends."
                raise RuntimeError(msg)
            if self._stopped:  # the second half of a save whose first was too far to be cancelled
                save.future.progress.cancel()
                save.future.end(None, save.text)
                _report_interrupted(save)
                return
            self._waiting.append(save)
            save.future.add_done_callback(self._drop)
            if self._threads == _MAX_THREADS:
                return
            self._threads += 1
            try:
                threading.Thread(target=self._work, name="fsspec_csx async_save", daemon=True).start()
            except RuntimeError:  # no more threads can be had
                self._threads -= 1
                self._waiting.remove(save)
                raise

    def _drop(self, future: concurrent.futures.Future[None]) -> None:
        """Drop a save that was cancelled before a thread started it, with its copy."""
        with self._changed:
            dropped = [save for save in self._waiting if save.future is future]
            for save in dropped:
                self._waiting.remove(save)
            self._changed.notify_all()
        if dropped:
            future.set_running_or_notify_cancel()

    def finish(self) -> None:
        """Wait for all saves and accept no more; Ctrl-C stops the rest."""
        try:
            self._close()
        except KeyboardInterrupt:
            with self._changed:
                self._stopped = True
            for save in [*self._waiting, *self._running]:
                if save.future.cancel():
                    _report_interrupted(save)
            self._close()
        log_unretrieved()

    def _close(self) -> None:
        with self._changed:
            self._changed.wait_for(self._is_idle)
            self._closed = True

    def _is_idle(self) -> bool:
        return not self._waiting and not self._running

    def _work(self) -> None:
        save = self._next(None)
        while save is not None:
            save.run()
            save = self._next(save)

    def _next(self, ended: _Save | None) -> _Save | None:
        """The first waiting save whose path is free; None ends the thread."""
        with self._changed:
            if ended is not None:
                self._running.remove(ended)
                self._changed.notify_all()
            busy = {save.place for save in self._running}
            for save in self._waiting:
                if save.place not in busy:
                    self._waiting.remove(save)
                    self._running.append(save)
                    return save
            self._threads -= 1
            return None


_saves = _Saves()


def _reset() -> None:
    """A forked child has none of its parent's threads."""
    global _saves
    _saves = _Saves()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)
# Runs in reverse order: before that of concurrent.futures.thread, which ends the threads that resolve host names.
# Functions of atexit run too late.
threading._register_atexit(lambda: _saves.finish())  # type: ignore[attr-defined]
