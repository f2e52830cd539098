"""async_save: a copy of the tensors now, and the checkpoint written by a thread while the training goes on."""

from __future__ import annotations

import concurrent.futures.thread
import logging
import os
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.callbacks import Callback, NoOpCallback

from fsspec_csx.checkpoint.exit_status import note_failure
from fsspec_csx.checkpoint.save_future import SaveFuture, SaveProgress, log_unasked
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import resolve_path, unwrap_filesystem
from fsspec_csx.storage.paths import checkpoint_path, redacted
from fsspec_csx.storage.progress import ProgressMeter

if TYPE_CHECKING:
    from fsspec_csx.formats.writer import CheckpointWriter

logger = logging.getLogger("fsspec_csx")

_SIDE_BY_SIDE = 2


def async_save(
    obj: object,
    path: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> SaveFuture:
    """Save an object as ``save`` would at this moment, but write the file in the background.

    When this returns, everything that is to be saved was copied, tensors on GPUs into pinned main memory: the object
    may change. The credentials, too, are those of the moment of the call. The copies are freed when the save is over;
    until then each save holds as much memory as its tensors take.

    Saves to one path are written one after the other, in the order of the calls, and those to different paths two at a
    time. With a ``save`` to the same path meanwhile, whichever ends last stays, whole. The interpreter waits at its
    exit for saves that are not over; Ctrl-C then stops them. A forked child has no part in its parent's saves.

    Args:
        obj: as of ``save``.
        path: as of ``save``.
        storage_options: as of ``save``.
        callback: as of ``save``, but called in another thread, and no progress bar shows without one.

    Returns:
        The save's future. If it fails and its result is never asked for, the failure is logged as an error, and the
        status with which the interpreter exits is 120 (also after ``sys.exit(3)``), or 1 if an exception ended it. (The
        children that multiprocessing forks do not exit like this, and keep theirs.)

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CredentialsError: a PermissionError, if the credentials for an S3 path are missing.
        ValueError: if the format cannot hold the object, as of ``save``.
        RuntimeError: if the main thread has ended already.
        Exception: what pickle raised for an object that cannot be saved.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats.writer import CheckpointWriter  # only here, as it imports torch

    fs, inner = resolve_path(path, text, storage_options)
    if fs is None:
        inner = os.path.join(os.getcwd(), inner)
    behind, place, _ = unwrap_filesystem(fs, inner)
    if connect := getattr(behind, "connect", None):
        connect()  # or it would sign in later, under the environment of that time
    saving = CheckpointWriter(obj, text, copied=True)
    future = SaveFuture(SaveProgress(callback or NoOpCallback(), saving.nbytes))
    _saves.add(_Save(future, fs, inner, text, os.path.realpath(place) if fs is None else place, saving))
    return future


# -- the threads -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Save:
    """A save that is not over.

    Attributes:
        future: what the caller holds.
        fs: the filesystem; None for this machine's own.
        path: the path on it.
        text: the path as the caller gave it.
        place: equal for saves that must not overtake each other; it does no harm if it is for others.
        saving: what is to be written.
    """

    future: SaveFuture
    fs: fsspec.AbstractFileSystem | None
    path: str
    text: str
    place: str
    saving: CheckpointWriter

    def run(self) -> None:
        """Save, and end the future, whatever happens; the copy is freed before."""
        if not self.future.set_running_or_notify_cancel():
            return
        error = self._failure()
        self.saving.free()
        _free_frames(error)
        try:
            self.future.end(error, self.text)
        except BaseException:  # of a done callback: the other saves shall go on
            logger.exception("A callback of the save to %s failed", redacted(self.text))
        del self, error  # the error's traceback leads here, and from here back to it

    def _failure(self) -> BaseException | None:
        try:
            self._write(self.future.course)
        except BaseException as error:
            return error
        return None

    def _write(self, course: SaveProgress) -> None:
        meter = ProgressMeter(course, self.saving.nbytes, estimated=True)

        def advance(count: int) -> None:
            course.check()
            meter.advance(count)

        with atomic_write(self.fs, self.path) as file:
            self.saving.write(file, advance=advance)
            course.settle()
            course.check()
        meter.finish()


def _free_frames(error: BaseException | None) -> None:
    """Free what the functions that an error went through still hold: tensors and parts of them are among it."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class _Saves:
    """The saves that are not over."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[_Save] = []
        self._running: list[_Save] = []
        self._threads = 0
        self._closed = False

    def add(self, save: _Save) -> None:
        with self._changed:
            if self._closed:
                msg = "The interpreter is ending and starts no saves. Call async_save before the main thread ends."
                raise RuntimeError(msg)
            self._waiting.append(save)
            save.future.add_done_callback(self._drop)
            if self._threads == _SIDE_BY_SIDE:
                return
            self._threads += 1
            try:
                threading.Thread(target=self._work, name="fsspec_csx async_save", daemon=True).start()
            except RuntimeError:  # no more threads can be had
                self._threads -= 1
                self._waiting.remove(save)
                raise

    def _drop(self, future: concurrent.futures.Future[None]) -> None:
        """Forget a save, and its copy, that was cancelled before any thread began it."""
        with self._changed:
            dropped = [save for save in self._waiting if save.future is future]
            for save in dropped:
                self._waiting.remove(save)
            self._changed.notify_all()
        if dropped:
            future.set_running_or_notify_cancel()

    def finish(self) -> None:
        """Wait for all of them, and take no more; Ctrl-C stops those that are left."""
        try:
            self._close()
        except KeyboardInterrupt:
            for save in [*self._waiting, *self._running]:
                if save.future.cancel():
                    note_failure()
                    logger.error("%s was not saved: interrupted", redacted(save.text))
            self._close()
        log_unasked()

    def _close(self) -> None:
        with self._changed:
            self._changed.wait_for(self._none_left)
            self._closed = True

    def _none_left(self) -> bool:
        return not self._waiting and not self._running

    def _work(self) -> None:
        save = self._next(None)
        while save is not None:
            save.run()
            save = self._next(save)

    def _next(self, over: _Save | None) -> _Save | None:
        """The first save whose path is free, after one that is over; None ends the thread."""
        with self._changed:
            if over is not None:
                self._running.remove(over)
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


def _start_afresh() -> None:
    """A forked child has none of the threads that its parent's saves run in."""
    global _saves
    _saves = _Saves()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_afresh)
# These run in the reverse order: ours before that of concurrent.futures.thread, which ends the threads that look up the
# names of hosts. The functions of atexit come too late.
threading._register_atexit(lambda: _saves.finish())  # type: ignore[attr-defined]
