"""SaveFuture: the result and the progress of ``async_save``, and the exit status after a failure."""

from __future__ import annotations

import concurrent.futures
import io
import logging
import os
import sys
import threading
import weakref
from typing import Any

from fsspec.callbacks import Callback, NoOpCallback

from fsspec_csx.errors import text_of
from fsspec_csx.storage.paths import redacted
from fsspec_csx.storage.threads import wait_for

logger = logging.getLogger("fsspec_csx")

_MESSAGE = (
    "A background save failed and nobody retrieved its result: the exit status is 120. "
    "Call result() of the future that async_save returns."
)


class SaveFuture(concurrent.futures.Future[None]):
    """A save in the background: a ``concurrent.futures.Future`` that can also be cancelled while it runs.

    Attributes:
        local: None, or for a save with ``local`` a future. It ends when the checkpoint is complete on the local disk,
            or at its path if the disk failed.
        waiting_thread: the identifier of the thread that waits for a foreground save; 0 for others.

    ``await asyncio.wrap_future(future)`` waits for it in an event loop; cancelling that wait cancels the save.
    """

    def __init__(self, progress: SaveProgress, *, local: bool = False) -> None:
        super().__init__()
        self.progress = progress
        self._owner = os.getpid()
        self._ended = False
        self.waiting_thread = 0
        self.local: SaveFuture | None = None
        if local:
            self.local = SaveFuture(SaveProgress(NoOpCallback(), 0))
            self.local.set_running_or_notify_cancel()  # only the whole save can be cancelled
            self.local.progress.commit()
            self.add_done_callback(SaveFuture.end_local)  # type: ignore[arg-type]
        # Logged if the result is not retrieved.
        self._unretrieved = ""
        _alive.add(self)

    @property
    def bytes_written(self) -> int:
        """The number of bytes written so far."""
        return int(self.progress.value)

    @property
    def bytes_total(self) -> int:
        """The size of the file; an estimate until the save has ended."""
        return int(self.progress.size)

    def result(self, timeout: float | None = None) -> None:
        """Wait until the save has ended.

        Args:
            timeout: in seconds; None waits without limit.

        Raises:
            concurrent.futures.CancelledError: if the save was cancelled and has stopped.
            concurrent.futures.TimeoutError: if the save has not ended in time.
            RuntimeError: in a forked child, which does not own the save.
            Exception: any error of ``save``.
        """
        error = self.exception(timeout)
        try:
            if error is not None:
                raise error
        finally:
            del self, error  # break the cycle through the error's traceback

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait until the save has ended, and return what ``result`` would raise, or None; otherwise like ``result``."""
        if self._owner != os.getpid() and not self._ended:
            msg = "This save belongs to the process that started it. Ask for its result there."
            raise RuntimeError(msg)
        error = super().exception(wait_for(self, timeout))
        self._unretrieved = ""
        if isinstance(error, concurrent.futures.CancelledError):
            raise error
        return error

    def cancel(self) -> bool:
        """Cancel the save and keep the old file; a running save stops at its next chunk.

        Returns:
            False if the checkpoint is being published or was published, or the save failed.
        """
        if self._owner != os.getpid():
            return False
        return super().cancel() or self.progress.cancel()

    def cancelled(self) -> bool:
        """Return whether the save was cancelled and has stopped."""
        return super().cancelled() or (self.progress.cancelled and self.done())

    def end_local(self) -> None:
        """End ``local`` if it has not ended, with the error of a failed save."""
        if self.local is None or self.local.done():
            return
        self.local._ended = True
        if super().cancelled():
            self.local.set_exception(concurrent.futures.CancelledError())
        elif self.done() and (error := super().exception()) is not None:
            self.local.set_exception(error)
        else:
            self.local.set_result(None)

    def end(self, error: BaseException | None, text: str) -> None:
        """Set the result, or the error that ended the save."""
        self._ended = True
        self.progress.commit()
        if self.progress.cancelled:
            self.set_exception(concurrent.futures.CancelledError())
        elif error is not None:
            self._unretrieved = redacted(f"{text} was not saved: {text_of(error, named=True)}")
            self.set_exception(error)
        else:
            self.set_result(None)

    def _log_unretrieved(self) -> None:
        message, self._unretrieved = self._unretrieved, ""
        if message and self._owner == os.getpid():
            note_failure()
            logger.error("%s", message)

    def __del__(self) -> None:
        self._log_unretrieved()


class SaveProgress(Callback):  # type: ignore[misc]
    """Counts the bytes of a save, passes them to the caller's callback, and carries requests to cancel.

    It must not refer to the future, which holds an error whose traceback refers to this object.
    """

    def __init__(self, callback: Callback, size: int) -> None:
        super().__init__(size)
        self.cancelled = False
        self._committed = False
        self._lock = threading.Lock()
        self._callback = callback

    def set_size(self, size: int) -> None:
        super().set_size(size)
        self._callback.set_size(size)

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._callback.relative_update(inc)

    def cancel(self) -> bool:
        """Stop the save at its next chunk; return False if it is too late."""
        with self._lock:
            self.cancelled = self.cancelled or not self._committed
            return self.cancelled

    def raise_if_cancelled(self) -> None:
        if self.cancelled:
            raise concurrent.futures.CancelledError

    def commit(self) -> None:
        """Disallow cancelling: the file is about to be published."""
        with self._lock:
            self._committed = True


_alive: weakref.WeakSet[SaveFuture] = weakref.WeakSet()


def log_unretrieved() -> None:
    """Log all failures that were not retrieved."""
    for future in list(_alive):
        future._log_unretrieved()


_failed = False


def note_failure() -> None:
    """Make this process exit with status 120, or 1 if an exception ends it."""
    global _failed
    _failed = True


def _reset() -> None:
    global _failed
    _failed = False


class _FailingStream:
    """A sys.stderr that fails at the interpreter's last flush, after all exit functions have run.

    Python exits with status 120 after such an error: https://docs.python.org/3/library/sys.html#sys.exit
    """

    closed = False

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._is_reported = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def flush(self) -> None:
        if sys.is_finalizing() and not self._is_reported:
            self._is_reported = True
            print(_MESSAGE, file=self._stream, flush=True)
            raise OSError(_MESSAGE)
        self._stream.flush()


def _replace_stderr() -> None:
    if _failed and not hasattr(sys, "last_value"):  # an exception ended the main thread
        sys.stderr = _FailingStream(sys.stderr or io.StringIO())


os.register_at_fork(after_in_child=_reset)
# Runs after functions that are registered later, such as the wait for saves.
threading._register_atexit(_replace_stderr)  # type: ignore[attr-defined]
