"""Threads that run functions: those that move bytes, which end when they are idle, and those of an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from fsspec_csx.s3.transport.call_scope import finish_despite_cancel

T = TypeVar("T")

NO_THREAD = "No thread can be started to send and fetch bytes. Raise the limit of processes or of memory."
TOO_LATE = (
    "The main thread has ended, and Python starts no other for requests any more. "
    "Let it wait for this thread, or save by async_save, which is waited for."
)
SHUTDOWN = ("after shutdown", "after interpreter shutdown")
"""How the messages of concurrent.futures end after the shutdown of the interpreter."""

_MANY = 1000  # things that a function takes about a millisecond for

IDLE_SECONDS = 30.0
"""After being idle for this time, the threads end and the connections are closed."""


class ThreadCall(Future[T]):
    """A call of a function, for a thread of a pool.

    A pool that cannot start a thread keeps what was submitted, and runs it later. A cancelled call is not made then.
    When it is done, nothing refers to its arguments any more: they may be memory that the caller resizes.
    """

    def __init__(self, function: Callable[..., T], *args: Any) -> None:
        super().__init__()
        self._call: Callable[[], T] | None = functools.partial(function, *args)

    def submit(self, submit: Callable[[Callable[[], None]], Any]) -> None:
        """Submit the call to a pool, by a function that takes it."""
        kept = [self]  # the frames in the traceback of an error refer to what was submitted, and so not to the error
        submit(lambda: kept.pop()._make())

    def _make(self) -> None:
        """Make the call, unless it was cancelled."""
        call, self._call = self._call, None
        if call is None or not self.set_running_or_notify_cancel():
            return
        try:
            result = call()
        except BaseException as error:
            self.set_exception(error)
            self = None  # type: ignore[assignment]  # the traceback refers to this frame too
        else:
            del call
            self.set_result(result)


class Threads:
    """Runs functions in threads.

    Args:
        most: the most threads.
        close_idle: called when they end; closes the connections that they used.
    """

    def __init__(self, most: int, close_idle: Callable[[], object] = bool) -> None:
        self._most, self._close_idle = most, close_idle
        self._lock = threading.Lock()
        self._busy = 0
        self._timer: asyncio.TimerHandle | None = None
        self._executor = self._new_executor()

    def __len__(self) -> int:
        return len(self._executor._threads)

    def _new_executor(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._most, thread_name_prefix="fsspec_csx")

    def submit(self, function: Callable[..., T], /, *args: Any) -> Future[T]:
        """Run a function in a thread.

        Raises:
            RuntimeError: if no thread can be started.
        """
        call = ThreadCall(function, *args)
        with self._lock:
            self._submit(call)
            self._busy += 1
        call.add_done_callback(self._done)
        return call

    def _submit(self, call: ThreadCall[Any]) -> None:
        """Submit a call; if no thread can be started, one of those that run makes it."""
        try:
            call.submit(self._executor.submit)
        except (RuntimeError, MemoryError) as error:
            if str(error).endswith(SHUTDOWN):
                raise RuntimeError(TOO_LATE) from error
            if not len(self):
                call.cancel()
                raise RuntimeError(NO_THREAD) from error

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self._busy -= 1

    def start_idle_timer(self) -> None:
        """Start the idle timer again; the event loop calls this after each use."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        nothing = contextvars.Context()  # the context of the call would keep its memory alive
        self._timer = loop.call_later(IDLE_SECONDS, _retire, weakref.ref(self), context=nothing)

    def retire(self) -> None:
        """End the threads and close their connections, if none is busy."""
        with self._lock:
            if self._busy:
                return
            former, self._executor = self._executor, self._new_executor()
        former.shutdown(wait=False)
        self._close_idle()


def _retire(threads: weakref.ref[Threads]) -> None:
    """End the threads after an idle time; the weak reference lets unused ``Threads`` be freed."""
    if (used := threads()) is not None:
        used.retire()


async def to_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a thread of the event loop, as ``asyncio.to_thread``.

    Raises:
        RuntimeError: if no thread can be started; then the function is not called later either.
    """
    call = ThreadCall(contextvars.copy_context().run, function, *args)
    try:
        call.submit(functools.partial(asyncio.get_running_loop().run_in_executor, None))
    except (RuntimeError, MemoryError) as error:
        if call.cancel():
            if str(error) != "can't start new thread":
                raise
            raise RuntimeError(NO_THREAD) from error
    return await asyncio.wrap_future(call)


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a thread; a cancellation takes effect after it has returned."""
    return await finish_despite_cancel(to_thread(function, *args))


async def in_thread_if_many(count: int, function: Callable[..., T], *args: Any) -> T:
    """Call a function that takes time for each of ``count`` things: in a thread if that would delay other work."""
    return await in_thread(function, *args) if count > _MANY else function(*args)


class ThreadedContext(Generic[T]):
    """Enters and leaves a context manager in threads, so that file locks and writes do not block the event loop."""

    def __init__(self, manager: contextlib.AbstractContextManager[T]) -> None:
        self._manager = manager
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> T:
        try:
            return await in_thread(self._stack.enter_context, self._manager)
        except BaseException as error:  # after a cancellation, the manager may have been entered
            await in_thread(self._stack.__exit__, type(error), error, error.__traceback__)
            raise

    async def __aexit__(self, *error: Any) -> bool | None:
        return await in_thread(self._stack.__exit__, *error)


async def run_in_thread(work: Callable[[], Any], stop: Callable[[], object]) -> None:
    """Run work that waits for the event loop in a thread; an exception here stops the work, and waits for its end."""
    running = asyncio.ensure_future(to_thread(work))
    try:
        await asyncio.shield(running)
    except BaseException:
        stop()
        await finish_despite_cancel(asyncio.wait([running]))
        running.exception()
        raise
