"""Closes a replaced client when nothing uses it any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from typing import Any

from fsspec_csx.s3.transport import compat


class Lease:
    """Stands in for the creator of a client, which s3fs and its finalizer would keep for the life of the filesystem."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.pid = os.getpid()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.made, name)

    async def __aexit__(self, *args: Any) -> None:
        made, self.made = self.made, None
        if made is not None:
            await made.__aexit__(*args)


def close_when_unused(client: Any, loop: Any) -> None:
    """Close a client's connections, on their event loop, once no request, body or caller refers to it."""
    session = compat.http_session(client)
    weakref.finalize(client, _close, session, weakref.ref(loop), os.getpid()).atexit = False


def keep_while_read(body: Any, *used: Any) -> None:
    """Keep the client of a body alive until the body is dropped."""
    with contextlib.suppress(TypeError):  # a body that allows no weak references does not stream
        weakref.finalize(body, lambda *_: None, *used).atexit = False


def _close(session: Any, loop: weakref.ref[Any], pid: int) -> None:
    running = loop()
    if running is None or running.is_closed() or pid != os.getpid():
        return
    with contextlib.suppress(RuntimeError):  # the loop was closed at this moment
        running.call_soon_threadsafe(_close_soon, session, running)


def _close_soon(session: Any, loop: asyncio.AbstractEventLoop) -> None:
    task = loop.create_task(session.__aexit__(None, None, None))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


# Keeps the tasks alive; the event loop holds only weak references to them.
_closing: set[asyncio.Task[None]] = set()
