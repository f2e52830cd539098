"""Plain methods of coroutines that Ctrl-C ends, and not only the waiting for them."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from fsspec.asyn import sync

# How long work that was given up may take to end: its upload is aborted.
_END_SECONDS = 30.0


def interruptible(coroutine: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """A plain method of a coroutine; as by fsspec, but what ends the waiting, such as Ctrl-C, ends the work too."""

    @functools.wraps(coroutine)
    def call(self: Any, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        tasks: list[Any] = []
        ended = threading.Event()

        async def work() -> Any:
            tasks.append(asyncio.current_task())
            try:
                return await coroutine(self, *args, **kwargs)
            finally:
                ended.set()

        try:
            return sync(self.loop, work, timeout=timeout)
        except BaseException:
            for task in tasks:
                self.loop.call_soon_threadsafe(task.cancel)
                ended.wait(_END_SECONDS)
            raise

    return call
