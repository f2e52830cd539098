"""SaveFuture: what the caller of async_save holds."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import threading
import weakref

from fsspec.callbacks import Callback

from fsspec_csx.checkpoint.exit_status import note_failure
from fsspec_csx.storage.paths import redacted

logger = logging.getLogger("fsspec_csx")


class SaveFuture(concurrent.futures.Future[None]):
    """A save that goes on in the background; a ``concurrent.futures.Future`` that can also be cancelled midway.

    ``await asyncio.wrap_future(future)`` waits for it in an event loop; to cancel that wait is to cancel the save.
    """

    def __init__(self, course: SaveProgress) -> None:
        super().__init__()
        self.course = course
        self._owner = os.getpid()
        self._over = False
        # What is to be logged unless somebody asks.
        self._unasked = ""
        _alive.add(self)

    @property
    def bytes_written(self) -> int:
        """How many bytes were written so far."""
        return int(self.course.value)

    @property
    def bytes_total(self) -> int:
        """How many there will be: an estimate until the save is over, and then the size of the file."""
        return int(self.course.size)

    def result(self, timeout: float | None = None) -> None:
        """Wait until the save is over.

        Args:
            timeout: in seconds; None to wait as long as it takes.

        Raises:
            concurrent.futures.CancelledError: if it was cancelled; nothing of it goes on any more.
            concurrent.futures.TimeoutError: if it is not over by then.
            RuntimeError: in a forked child, where the save goes on without us.
            Exception: what ``save`` would have raised.
        """
        error = self.exception(timeout)
        try:
            if error is not None:
                raise error
        finally:
            del self, error  # the error's traceback would keep them alive, and they it

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait until the save is over, and return what ``result`` would raise, or None; otherwise as ``result``."""
        if self._owner != os.getpid() and not self._over:
            msg = "This save belongs to the process that started it. Ask for its result there."
            raise RuntimeError(msg)
        error = super().exception(timeout)
        self._unasked = ""
        if isinstance(error, concurrent.futures.CancelledError):
            raise error
        return error

    def cancel(self) -> bool:
        """Keep what is at the path: a save that is being written stops at its next piece.

        Returns:
            Whether the checkpoint will not be published; False if it is or is just about to be, or the save failed.
        """
        if self._owner != os.getpid():
            return False
        return super().cancel() or self.course.stop()

    def cancelled(self) -> bool:
        """Whether it was cancelled, and nothing of it goes on any more."""
        return super().cancelled() or (self.course.stopping and self.done())

    def end(self, error: BaseException | None, text: str) -> None:
        """Give it its result, or the error that ended it."""
        self._over = True
        self.course.settle()
        if self.course.stopping:
            self.set_exception(concurrent.futures.CancelledError())
        elif error is not None:
            self._unasked = redacted(f"{text} was not saved: {type(error).__name__}: {error}")
            self.set_exception(error)
        else:
            self.set_result(None)

    def _log_unasked(self) -> None:
        message, self._unasked = self._unasked, ""
        if message and self._owner == os.getpid():
            note_failure()
            logger.error("%s", message)

    def __del__(self) -> None:
        self._log_unasked()


class SaveProgress(Callback):  # type: ignore[misc]
    """How far a save has come, and whether it shall go on. Tells the caller's callback, too.

    It does not know the save's future: what an error went through holds this one, and the future holds the error.
    """

    def __init__(self, callback: Callback, size: int) -> None:
        super().__init__(size)
        self.stopping = False
        self._settled = False
        self._lock = threading.Lock()
        self._callback = callback

    def set_size(self, size: int) -> None:
        super().set_size(size)
        self._callback.set_size(size)

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._callback.relative_update(inc)

    def stop(self) -> bool:
        """Let nothing more be written; whether it is early enough for that."""
        with self._lock:
            self.stopping = self.stopping or not self._settled
            return self.stopping

    def check(self) -> None:
        """Raise CancelledError if it shall stop."""
        if self.stopping:
            raise concurrent.futures.CancelledError

    def settle(self) -> None:
        """From here on it is too late to stop."""
        with self._lock:
            self._settled = True


_alive: weakref.WeakSet[SaveFuture] = weakref.WeakSet()


def log_unasked() -> None:
    """Log all failures that nobody asked for so far."""
    for future in list(_alive):
        future._log_unasked()
