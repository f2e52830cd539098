"""The queue of background saves, and the threads that run them."""

from __future__ import annotations

import concurrent.futures.thread
import logging
import os
import threading
import traceback
from dataclasses import dataclass

from fsspec_csx.checkpoint.save_future import SaveFuture, SaveProgress, log_unretrieved, note_failure
from fsspec_csx.formats.writer import CheckpointWriter, Target
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.storage.threads import SIGNAL_SECONDS

logger = logging.getLogger("fsspec_csx")

_MAX_THREADS = 2


def add(save: Save) -> None:
    """Run a save in the background; raise a RuntimeError if the main thread has already ended."""
    _saves.add(save)


@dataclass(eq=False)
class Save:
    """A save in the queue.

    Attributes:
        exclusion_key: saves with the same key run one at a time, in order.
        order_key: saves with the same key start in order, because later ones wait for earlier ones; empty for none.
    """

    future: SaveFuture
    target: Target
    exclusion_key: str
    saving: CheckpointWriter
    order_key: str = ""

    def run(self) -> None:
        """Save, free the copy, and end the future in any case."""
        if not self.future.set_running_or_notify_cancel():
            return
        error: BaseException | None = None
        try:
            self._write(self.future.progress)
        except BaseException as raised:
            error = raised
        self.saving.free()
        _free_frames(error)
        try:
            self.future.end(error, self.target.name)
        except BaseException:  # from a done callback: other saves continue
            logger.exception("A callback of the save to %s failed", self.target.name)
        del self, error  # break the cycle through the error's traceback

    def _write(self, progress: SaveProgress) -> None:
        meter = ProgressMeter(progress, self.saving.nbytes, estimated=True)

        def advance(count: int) -> None:
            progress.raise_if_cancelled()
            meter.advance(count)

        def commit() -> None:
            progress.commit()
            progress.raise_if_cancelled()

        self.saving.save(self.target, advance=advance, commit=commit)
        meter.finish()


def _free_frames(error: BaseException | None) -> None:
    """Free the local variables, such as tensors, of the functions in an error's traceback."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


class _Saves:
    """The queue of saves, and the threads that run them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Save] = []
        self._running: list[Save] = []
        self._threads = 0
        self._closed = False

    def add(self, save: Save) -> None:
        with self._changed:
            try:
                self._begin(save)
            except RuntimeError:
                save.future.progress.cancel()
                save.future.end(None, save.target.name)  # later saves may wait for it
                raise

    def _begin(self, save: Save) -> None:
        if self._closed:
            msg = "The interpreter is ending and starts no saves. Call async_save before the main thread ends."
            raise RuntimeError(msg)
        self._waiting.append(save)
        save.future.add_done_callback(self._drop)
        if self._threads == _MAX_THREADS:
            return
        self._threads += 1
        try:
            threading.Thread(target=self._work, name="fsspec_csx async_save", daemon=True).start()
        except RuntimeError:  # no thread can be started
            self._threads -= 1
            self._waiting.remove(save)
            raise

    def _drop(self, future: concurrent.futures.Future[None]) -> None:
        """Drop a save, with its copy, that was cancelled before it started."""
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
            for save in [*self._waiting, *self._running]:
                if save.future.cancel():
                    note_failure()
                    logger.error("%s was not saved: interrupted", save.target.name)
            self._close()
        log_unretrieved()

    def _close(self) -> None:
        with self._changed:
            while not self._changed.wait_for(self._is_idle, SIGNAL_SECONDS):
                pass
            self._closed = True

    def _is_idle(self) -> bool:
        return not self._waiting and not self._running

    def _work(self) -> None:
        save = self._next(None)
        while save is not None:
            save.run()
            save = self._next(save)

    def _next(self, ended: Save | None) -> Save | None:
        """Return the first waiting save whose path is free; None ends the thread."""
        with self._changed:
            if ended is not None:
                self._running.remove(ended)
                self._changed.notify_all()
            busy = {save.exclusion_key for save in self._running}
            behind = set[str]()
            for save in self._waiting:
                if save.exclusion_key not in busy and not (save.order_key and save.order_key in behind):
                    self._waiting.remove(save)
                    self._running.append(save)
                    return save
                behind.add(save.order_key)
            self._threads -= 1
            return None


_saves = _Saves()


def _reset() -> None:
    """Start with an empty queue in a forked child, which has none of the parent's threads."""
    global _saves
    _saves = _Saves()


os.register_at_fork(after_in_child=_reset)
# Such functions run in reverse order: this one before that of concurrent.futures.thread, which ends the threads that
# resolve host names. Functions of atexit run too late.
threading._register_atexit(lambda: _saves.finish())  # type: ignore[attr-defined]
