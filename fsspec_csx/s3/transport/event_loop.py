"""Work on a filesystem's event loop, for which the caller's thread waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent import futures
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeVar

from fsspec.exceptions import FSTimeoutError

from fsspec_csx.s3.transport.call_scope import Scope, wait_for_threads, within
from fsspec_csx.storage.threads import wait_for

logger = logging.getLogger("fsspec_csx")

T = TypeVar("T")
LOOP_CLOSED = "The event loop of this filesystem was closed. Make another filesystem, for a loop that runs."
# How long cancelled work may take to end: it aborts its upload, and the event loop may be busy.
_END_SECONDS = 30.0
_SILENT_SECONDS = 2.0


class CarriedExit(BaseException):
    """KeyboardInterrupt or SystemExit, raised by a function of the caller on the event loop.

    asyncio lets both, but no other exception, end the loop and with it the thread that all filesystems share.
    """

    def __init__(self, error: KeyboardInterrupt | SystemExit) -> None:
        super().__init__(error)
        self.error = error


def carry(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function of the caller on the event loop; ``Work`` raises its KeyboardInterrupt or SystemExit."""
    try:
        return function(*args, **kwargs)
    except (KeyboardInterrupt, SystemExit) as error:
        raise CarriedExit(error) from None


class Work(Future[Any]):
    """A coroutine that an event loop runs for another thread; see ``asyncio.run_coroutine_threadsafe``.

    If it is cancelled before it begins, it never runs; otherwise it is done only when the coroutine and all its work
    have ended. ``schedule`` starts it; the caller must be ready to handle interrupts by then.

    Args:
        loop: the event loop.
        call: makes the coroutine, on the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None, call: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self._loop = loop
        self._scope = Scope()
        self._call: Callable[[], Awaitable[Any]] | None = call
        self._task: asyncio.Task[Any] | None = None

    def schedule(self) -> None:
        """Submit the work to the event loop.

        Raises:
            RuntimeError: if the loop is closed.
        """
        if self._loop is None or self._loop.is_closed():
            raise RuntimeError(LOOP_CLOSED)
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if not self.set_running_or_notify_cancel():
            return
        assert self._loop is not None
        self._task = self._loop.create_task(self._run())
        self._task.add_done_callback(self._finish)

    async def _run(self) -> Any:
        call, self._call = self._call, None  # its arguments may be memory that the caller resizes afterwards
        assert call is not None
        return await within(self._scope, call)

    def _finish(self, task: asyncio.Task[Any]) -> None:
        self._task = None
        if task.cancelled():
            self.set_exception(CancelledError())
        elif (error := task.exception()) is not None:
            self.set_exception(error.error if isinstance(error, CarriedExit) else error)
        else:
            self.set_result(task.result())

    def result(self, timeout: float | None = None) -> Any:
        """See ``concurrent.futures.Future``; signals are noticed."""
        return super().result(wait_for(self, timeout))

    def cancel(self) -> bool:
        """Cancel the work; return False if it is done."""
        if super().cancel():
            return True
        if self.done():
            return False
        self._scope.close()
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._cancel_task)
        return True

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def wait(self, timeout: float | None = None) -> Any:
        """Schedule the work and return its result; Ctrl-C, or another exception, ends the work too.

        Raises:
            fsspec.FSTimeoutError: if it takes longer than ``timeout`` seconds, or raises a TimeoutError itself.
        """
        try:
            self.schedule()
            return self.result(timeout or None)
        except (TimeoutError, asyncio.TimeoutError, futures.TimeoutError) as error:
            self.end()
            raise FSTimeoutError from error
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Cancel the work, and wait until none of its threads uses the caller's memory."""
        if self.done():
            return
        bodies = self._scope.close()
        try:
            self.cancel()
            if not self.cancelled():
                self.wait_for_cleanup()
        finally:
            wait_for_threads(bodies)

    def wait_for_cleanup(self, seconds: float = _END_SECONDS) -> None:
        """Wait until the work has cleaned up; if the server does not answer, log how to end the wait."""
        if wait([self], min(seconds, _SILENT_SECONDS)).not_done:
            logger.warning(
                "The server does not answer, so aborting may take %g s. Ctrl-C ends the wait; 'cszoo checkpoint gc' "
                "removes an upload that is left.",
                seconds,
            )
            wait([self], seconds)


def submit(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Work:
    """Submit a coroutine to an event loop."""
    work = work_for(loop, coroutine)
    work.schedule()
    return work


def work_for(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]) -> Work:
    """Return the work of a coroutine, which is still to be scheduled."""
    work = Work(loop, lambda: coroutine)
    work.add_done_callback(lambda _: coroutine.close())  # for work that was cancelled before it began
    return work


def ended(work: Work) -> asyncio.Future[Any]:
    """Return a future that is done when the work is; it never fails, so asyncio reports no unretrieved error."""
    return asyncio.gather(asyncio.wrap_future(work), return_exceptions=True)


def run_and_wait(fs: Any, call: Callable[[], Awaitable[Any]], timeout: float | None = None) -> Any:
    """Run a coroutine on the event loop of a filesystem, and return its result; Ctrl-C ends the coroutine too."""
    return Work(fs.loop, call).wait(timeout)


def is_on_loop(fs: Any) -> bool:
    """Return whether the caller runs on the event loop of a filesystem."""
    try:
        return asyncio.get_running_loop() is fs.loop
    except RuntimeError:
        return False


def check_off_loop(fs: Any) -> None:
    """Raise RuntimeError on the event loop of a filesystem, where waiting for it would never end."""
    if is_on_loop(fs):
        msg = "A file cannot wait on the event loop that serves it. Use open_async, or another thread."
        raise RuntimeError(msg)
