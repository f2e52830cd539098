"""Calls that leave nothing running: once control has returned to the caller, none of their work goes on.

That holds however a call ends: by Ctrl-C, by ``timeout=``, by the cancellation of a coroutine, or by an error of one of
many tasks. Each call has a scope, which knows its tasks and what its threads fill and send. When the scope is closed,
no task of the call makes another request, and no thread writes to memory that is the caller's again, not even when the
event loop is busy with something else and cannot cancel anything yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Body(Protocol):
    """What a thread fills or sends."""

    thread: Future[Any] | None

    def give_up(self) -> None:
        """Let the thread end soon."""

    @property
    def harmful(self) -> bool:
        """Whether the thread uses memory or a file that is not its own at this moment."""


class Scope:
    """All that one call has running.

    Args:
        parent: the scope of the call that this one is a part of.
    """

    def __init__(self, parent: Scope | None = None) -> None:
        self._parent = parent
        self._lock: threading.Lock = parent._lock if parent else threading.Lock()
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._bodies: weakref.WeakSet[Body] = weakref.WeakSet()

    @property
    def closed(self) -> bool:
        """Whether the call is over."""
        return self._closed or (self._parent is not None and self._parent.closed)

    def join(self) -> None:
        """Make the running task one of the call's.

        Raises:
            asyncio.CancelledError: if the call is over.
        """
        if self.closed:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        if task is not None and task not in self._tasks:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def begin(self, body: Body, start: Callable[[], Future[Any]]) -> Future[Any]:
        """Start the thread of a body, which becomes one of the call's.

        Raises:
            asyncio.CancelledError: if the call is over.
        """
        with self._lock:
            if self.closed:
                raise asyncio.CancelledError
            body.thread = thread = start()
            for each in self._up():
                each._bodies.add(body)
        return thread

    def _up(self) -> Iterator[Scope]:
        current: Scope | None = self
        while current is not None:
            yield current
            current = current._parent

    def close(self) -> list[Body]:
        """From any thread: let nothing begin any more, and what threads do end soon.

        Returns:
            What they may still be at.
        """
        with self._lock:
            self._closed = True
            bodies = [body for body in self._bodies if body.thread is not None and not body.thread.done()]
        for body in bodies:
            body.give_up()
        return bodies

    async def end(self, but: asyncio.Task[Any] | None) -> None:
        """On the event loop: close, cancel the tasks, and wait until all have ended.

        Args:
            but: a task that goes on.
        """
        self.close()
        await asyncio.sleep(0)  # tasks that were made and have not begun yet: they find that the call is over
        while tasks := {task for task in self._tasks if task is not but and not task.done()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


_current: ContextVar[Scope | None] = ContextVar("current", default=None)
_no_call = Scope()


def scope() -> Scope:
    """The scope of the call that is being served; one that is never closed where there is none."""
    return _current.get() or _no_call


@contextlib.contextmanager
def tidying() -> Iterator[None]:
    """Let the block make requests though its call may be over: it cleans up after it."""
    reset = _current.set(None)
    try:
        yield
    finally:
        _current.reset(reset)


async def uncancelled(awaitable: Awaitable[T]) -> T:
    """Await something to its end; a cancellation meanwhile takes effect after it."""
    task = asyncio.ensure_future(awaitable)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # or it would be reported as never looked at
        raise cancelled
    return task.result()


async def in_thread(call: Callable[..., T], *args: Any) -> T:
    """Call a function in a thread; a cancellation meanwhile takes effect after it has returned."""
    return await uncancelled(asyncio.to_thread(call, *args))


class ThreadedContext(Generic[T]):
    """A context manager that is entered and left in threads: file locks and writes do not block the event loop.

    Args:
        manager: to be entered.
    """

    def __init__(self, manager: contextlib.AbstractContextManager[T]) -> None:
        self._manager = manager
        self._stack = contextlib.ExitStack()

    async def __aenter__(self) -> T:
        try:
            return await in_thread(self._stack.enter_context, self._manager)
        except BaseException as error:  # if cancelled, it is entered nevertheless
            await in_thread(self._stack.__exit__, type(error), error, error.__traceback__)
            raise

    async def __aexit__(self, *error: Any) -> bool | None:
        return await in_thread(self._stack.__exit__, *error)


async def within(new: Scope, call: Callable[[], Awaitable[T]]) -> T:
    """Await what a call returns, in a scope of its own: whatever it has begun ends with it."""
    reset = _current.set(new)
    try:
        return await call()
    except BaseException as error:
        await uncancelled(new.end(asyncio.current_task()))
        _close_coroutines(error)
        raise
    finally:
        new.close()
        _current.reset(reset)


def _close_coroutines(error: BaseException) -> None:
    """Close the coroutines that fsspec has made for many objects and not begun, or Python warns of each."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for each in frame.f_locals.get("coros") or ():
            if inspect.iscoroutine(each) and inspect.getcoroutinestate(each) == inspect.CORO_CREATED:
                each.close()


def contained(coroutine: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """A coroutine of many tasks that leaves none of them behind, also when it is cancelled."""

    @functools.wraps(coroutine)
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await within(Scope(_current.get()), functools.partial(coroutine, *args, **kwargs))

    call.contained = True  # type: ignore[attr-defined]
    return call


def wait_for_threads(bodies: list[Body]) -> None:
    """Wait until no thread uses what is not its own."""
    wait([body.thread for body in bodies if body.thread is not None and body.harmful])
