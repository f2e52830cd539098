"""The threads that move bytes; they start on demand, and end after some idle time."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fsspec_csx.s3.transport.call_scope import NO_THREAD, ThreadCall
from fsspec_csx.s3.transport.event_loop import SHUTDOWN, TOO_LATE

T = TypeVar("T")

IDLE_SECONDS = 30.0
"""After this time without a use, idle threads in excess of ``kept`` end."""


class Threads:
    """Runs functions in threads.

    Args:
        most: the most threads.
        kept: how many idle threads are kept.
    """

    def __init__(self, most: int, kept: int) -> None:
        self._most, self._kept = most, kept
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
        """End the threads, if none is busy and there are more than ``kept``."""
        with self._lock:
            if self._busy or len(self) <= self._kept:
                return
            former, self._executor = self._executor, self._new_executor()
        former.shutdown(wait=False)


def _retire(threads: weakref.ref[Threads]) -> None:
    """End the threads after an idle time; the weak reference lets unused ``Threads`` be freed."""
    if (used := threads()) is not None:
        used.retire()
