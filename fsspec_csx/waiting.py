"""Waiting, in a thread of the caller, for what the event loop of a filesystem does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

TOO_LATE = (
    "The main thread has ended, and Python starts no other for requests any more. "
    "Let it wait for this thread, or save by async_save, which is waited for."
)
SHUTDOWN = ("after shutdown", "after interpreter shutdown")
"""How concurrent.futures ends its sentence then."""


def start(fs: Any, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
    """Hand a coroutine to the event loop of a filesystem."""
    return asyncio.run_coroutine_threadsafe(coroutine, fs.loop)


def is_on_loop(fs: Any) -> bool:
    """Whether this is run by the event loop of a filesystem."""
    try:
        return asyncio.get_running_loop() is fs.loop
    except RuntimeError:
        return False


def check_off_loop(fs: Any) -> None:
    """Raise a RuntimeError if this is run by the event loop of a filesystem, which would wait for itself."""
    if is_on_loop(fs):
        msg = "A file cannot wait on the event loop that serves it. Use open_async, or another thread."
        raise RuntimeError(msg)
