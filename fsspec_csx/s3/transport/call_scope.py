"""Scopes of calls: when a call has returned, none of its work is still running.

This holds whether the call ends by Ctrl-C, ``timeout=``, a cancellation, or an error of one of many tasks. A scope
records the tasks of its call and the buffers that its threads use. Once it is closed, no task makes another request,
and no thread writes to the caller's memory. This holds even if the event loop is too busy to cancel anything yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any, Protocol, TypeVar

from fsspec_csx.s3.transport.request_context import current, using

T = TypeVar("T")


class Body(Protocol):
    """Bytes that a thread receives or sends."""

    thread: Future[Any] | None

    def give_up(self) -> None:
        """Make the thread end soon."""

    @property
    def uses_caller_memory(self) -> bool:
        """Whether the thread uses the caller's memory or file now."""


class Scope:
    """The tasks and threads of one call; ``parent`` is the scope of the call that contains it."""

    def __init__(self, parent: Scope | None = None) -> None:
        self._parent = parent
        self._lock: threading.Lock = parent._lock if parent else threading.Lock()
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._bodies: weakref.WeakSet[Body] = weakref.WeakSet()

    @property
    def closed(self) -> bool:
        return self._closed or (self._parent is not None and self._parent.closed)

    def join(self) -> None:
        """Add the running task to the call; CancelledError if the call is over."""
        if self.closed:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        if task is not None and task not in self._tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def begin(self, body: Body, start: Callable[[], Future[Any]]) -> Future[Any]:
        """Start the thread of a body, and add it to the call; CancelledError if the call is over."""
        with self._lock:
            if self.closed:
                raise asyncio.CancelledError
            body.thread = thread = start()
            each: Scope | None = self
            while each is not None:
                each._bodies.add(body)
                each = each._parent
        return thread

    def close(self) -> list[Body]:
        """Prevent new work, make threads end soon, and return the bodies that they may still use; thread-safe."""
        with self._lock:
            self._closed = True
            bodies = [body for body in self._bodies if body.thread is not None and not body.thread.done()]
        for body in bodies:
            body.give_up()
        return bodies

    async def end(self, but: asyncio.Task[Any] | None) -> None:
        """Close the scope, cancel its tasks ``but`` one, and wait until they have ended; on the event loop."""
        self.close()
        await asyncio.sleep(0)  # lets new tasks begin, which then find that the call is over
        while tasks := {task for task in self._tasks if task is not but and not task.done()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


_no_call = Scope()


def scope() -> Scope:
    """Return the scope of the current call; outside of calls, one that is never closed."""
    return current().scope or _no_call


def cleanup_scope() -> contextlib.AbstractContextManager[None]:
    """Let a block make requests although its call may be over, to clean up after it."""
    return using(scope=None)


async def finish_despite_cancel(awaitable: Awaitable[T], seconds: float | None = None, *, cancelled: bool = False) -> T:
    """Await something to its end; a cancellation, also by the end of the event loop, takes effect afterwards.

    Args:
        seconds: the most time that it may take after a cancellation.
        cancelled: whether the caller was cancelled before.
    """
    from fsspec_csx.s3.transport.compat import unregister_task  # imported here, as it imports this module

    task = asyncio.ensure_future(awaitable)
    if isinstance(task, asyncio.Task):
        unregister_task(task)
    cancellation: asyncio.CancelledError | None = None
    timer: asyncio.TimerHandle | None = None
    while not task.done():
        if timer is None and seconds is not None and (cancelled or cancellation is not None):
            timer = task.get_loop().call_later(seconds, task.cancel)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if timer is not None:
        timer.cancel()  # or it keeps the task until then
    if cancellation is not None:
        if not task.cancelled():
            task.exception()  # otherwise asyncio reports it as never retrieved
        raise cancellation
    return task.result()


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def within(new: Scope, call: Callable[[], Awaitable[T]]) -> T:
    """Await a call in a scope of its own, so that all its work ends with it."""
    with using(scope=new):
        try:
            return await call()
        except BaseException as error:
            await finish_despite_cancel(new.end(asyncio.current_task()))
            _close_coroutines(error)
            raise
        finally:
            new.close()


def _close_coroutines(error: BaseException) -> None:
    """Close the coroutines that fsspec made for many objects but did not start; Python would warn of each."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for each in frame.f_locals.get("coros") or ():
            if inspect.iscoroutine(each) and inspect.getcoroutinestate(each) == inspect.CORO_CREATED:
                each.close()


def contained(coroutine: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """Decorate a coroutine that runs many tasks, so that it leaves none running, even if it is cancelled."""

    @functools.wraps(coroutine)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await within(Scope(current().scope), functools.partial(coroutine, *args, **kwargs))

    call.contained = True  # type: ignore[attr-defined]
    return call


def wait_for_threads(bodies: list[Body]) -> None:
    """Wait until no thread uses the caller's memory."""
    wait([body.thread for body in bodies if body.thread is not None and body.uses_caller_memory])
