"""Reads bodies of responses without object data, within limits of memory and time."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import ServerTimeoutError

from fsspec_csx.private_names import release
from fsspec_csx.s3.transport.failures import InvalidResponseError, UnguardedResponseError
from fsspec_csx.s3.transport.request_context import current, using

LONGEST = 8 * 2**20
"""The longest body, in bytes; a page of 1,000 percent-encoded keys of 1,024 bytes each has less than half of that."""

# How long, in seconds, a body may take to arrive, even if it never stalls for read_timeout. A server that completes an
# upload, or copies, sends blanks meanwhile, and may do so for minutes.
_READ_SECONDS, _WRITE_SECONDS = 60.0, 600.0
# How many bytes of an error response are read.
_LONGEST_REFUSAL = 2**20
# Present in documents that define entities, which may refer to other files; no response of S3 has it.
_DEFINITION = b"<!DOCTYPE"


class _Guarded:
    """One request that a guarded session sends, and whether its response passed the guard."""

    def __init__(self, *, streamed: bool) -> None:
        self.streamed = streamed  # whether the caller reads the body
        self.response: Any = None
        self.was_read = False

    def check(self, response: Any) -> None:
        """Raise UnguardedResponseError unless this response passed the guard, and its body is or will be limited."""
        passed = response is self.response
        unbounded = self.streamed and response.status < 300 if passed else False
        if not passed or not (unbounded or self.was_read or "read" in vars(response)):
            msg = f"{release('aiobotocore')} bypasses the guard against redirects and endless bodies."
            raise UnguardedResponseError(msg)


async def guarded(send: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    """Send a request by an aiobotocore session whose connections call ``received``.

    Raises:
        UnguardedResponseError: if the session did not call ``received``, or read the body in another way.
    """
    guarded_request = _Guarded(streamed=request.stream_output)
    with using(guarded=guarded_request):
        response = await send(request)
    guarded_request.check(response.raw)
    return response


async def received(method: str, sent: Awaitable[Any]) -> Any:
    """Await aiohttp's response within a time limit, and limit its ``read``; InvalidResponseError if it has no end."""
    reads = method in ("GET", "HEAD", "DELETE")
    # An upload may take long; a request without a body may wait for a connection, but only for a limited time.
    response = await (_ended(sent, _WRITE_SECONDS) if reads else sent)
    guarded_request = current().guarded
    if guarded_request is not None:
        guarded_request.response = response
    if guarded_request is None or response.status >= 300 or not guarded_request.streamed:
        response.read = functools.partial(_read, response, _READ_SECONDS if reads else _WRITE_SECONDS, guarded_request)
    return response


async def _read(response: Any, seconds: float, request: _Guarded | None) -> bytes:
    del response.read  # it is a reference cycle with the response
    if request is not None:
        request.was_read = True
    taken = LimitedBody(response.status)

    async def read() -> None:
        async for piece in response.content.iter_any():
            if not taken.add(piece):
                response.close()
                return

    try:
        await _ended(read(), seconds)
    except BaseException:
        response.close()
        raise
    return taken.body()


async def _ended(awaited: Awaitable[Any], seconds: float) -> Any:
    try:
        return await asyncio.wait_for(awaited, seconds)
    except ServerTimeoutError:  # aiohttp's own, which is a subclass of asyncio's
        raise
    except asyncio.TimeoutError as error:
        raise _endless(seconds) from error


def _endless(seconds: float) -> InvalidResponseError:
    return InvalidResponseError(f"its body has not ended after {seconds:.0f} s")


class LimitedBody:
    """The bytes of a body that have arrived; ``status`` is that of the response."""

    def __init__(self, status: int) -> None:
        self._refused = status >= 300
        self._most = _LONGEST_REFUSAL if self._refused else LONGEST
        self._data = bytearray()

    def add(self, piece: bytes) -> bool:
        """Add bytes; return whether more may follow.

        Raises:
            InvalidResponseError: if the body is too long, and the response is not an error.
        """
        self._data += piece
        if len(self._data) > self._most and not self._refused:
            msg = f"its body is longer than {self._most:,} bytes"
            raise InvalidResponseError(msg)
        return len(self._data) <= self._most

    def body(self) -> bytes:
        """Return the whole body; empty for an error response that is too long or defines entities.

        Raises:
            InvalidResponseError: if it is a document that defines entities.
        """
        unreadable = len(self._data) > self._most or _DEFINITION in self._data
        if unreadable and not self._refused:
            msg = "its body is a web page, or a document that defines entities"
            raise InvalidResponseError(msg)
        return b"" if unreadable else bytes(self._data)


def taken_from(read: Callable[[int], bytes], status: int) -> bytes:
    """Read a body in a thread, within the same limits; ``read`` takes the most bytes, and returns none at the end."""
    taken, began = LimitedBody(status), time.monotonic()
    while (piece := read(2**16)) and taken.add(piece):
        if time.monotonic() - began > _READ_SECONDS:
            raise _endless(_READ_SECONDS)
    return taken.body()
