"""What this package adds to a client of aiobotocore: handlers of its events, and closing it when nothing uses it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from fsspec_csx.s3.client import no_redirects, response_validation, retries
from fsspec_csx.s3.client.checksum_headers import ChecksumHeaders
from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.bulk_handlers import BulkHandlers
from fsspec_csx.s3.transport.transfer import Transfer

_TRANSFERS = ("GetObject", "PutObject", "UploadPart")
# Requests before a transfer; their response times show how far the store is.
_TIMED = ("HeadObject", "CreateMultipartUpload")
# Keeps the tasks that close clients alive; the event loop holds only weak references to them.
_closing: set[asyncio.Task[None]] = set()


def register_handlers(
    client: Any, transfer: Transfer, headers: Iterable[ChecksumHeaders], first_contact: Callable[..., Any] | None
) -> None:
    """Register this package's handlers for the requests of a client, in the order in which they are called.

    botocore calls the handlers of one operation before those of all operations, each in the order of this list; its own
    retry handler for ``needs-retry`` is last. All are called; the first that returns seconds sets the wait.
    https://docs.aws.amazon.com/boto3/latest/guide/events.html
    """
    no_redirects.check_guarded(client)
    bulk = BulkHandlers(client, transfer)
    compat.replace_parsers(client, response_validation.Parsers)
    first, last = client.meta.events.register_first, client.meta.events.register_last
    for operation in _TRANSFERS:
        first(f"before-parameter-build.s3.{operation}", bulk.before_building)
        first(f"request-created.s3.{operation}", bulk.before_signing)
        client.meta.events.register(f"before-send.s3.{operation}", bulk.answer)
    for operation in response_validation.NEXT:
        first(f"before-parameter-build.s3.{operation}", response_validation.note_request)
    for kind in headers:
        for operation in kind.operations:
            first(f"request-created.s3.{operation}", kind.before_signing)
            first(f"needs-retry.s3.{operation}", kind.answered)
    for operation in _TIMED:
        first(f"before-send.s3.{operation}", bulk.note_sent)
        first(f"needs-retry.s3.{operation}", bulk.note_answered)
    first("needs-retry.s3", no_redirects.refuse_redirect)
    first("needs-retry.s3", retries.note)
    first("needs-retry.s3", response_validation.explain_damage)
    first("needs-retry.s3", retries.give_up)
    if first_contact is not None:
        first("needs-retry.s3", first_contact)
        first("needs-retry.s3", retries.retry_after)
    last("after-call.s3", response_validation.validate)


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
