"""The bodies of answers that are no objects, received whole in bounded memory and time."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from aiohttp import ServerTimeoutError

from fsspec_csx.s3.transport.failures import InvalidResponseError

LONGEST = 8 * 2**20
"""Bytes of a body, at most: a page of 1,000 keys, each of 1,024 bytes and written as URLs are, has less than half."""

# How long, in seconds, a body may take to come, though it never stops for as long as read_timeout. A server that is
# busy with the parts of an upload, or with a copy, sends blanks all the while, and may do so for minutes.
_READ_SECONDS, _WRITE_SECONDS = 60.0, 600.0
# Of what refuses a request, more is not looked at.
_LONGEST_REFUSAL = 2**20
# Documents that define entities, of their own or of other files, have one; no answer of S3 does.
_DEFINITION = b"<!DOCTYPE"

# Whether the body of the answer to the request that is being sent is read by whoever asked.
streamed: ContextVar[bool] = ContextVar("streamed", default=False)


async def received(method: str, asked: Any) -> Any:
    """Let an answer, and its ``read``, keep the bounds.

    Args:
        method: of the request, such as GET.
        asked: what becomes aiohttp's response to it.

    Raises:
        InvalidResponseError: if it does not end.
    """
    reads = method in ("GET", "HEAD", "DELETE")
    # What is sent may be long; a request without a body may wait for a connection, but not so long.
    response = await (_ended(asked, _WRITE_SECONDS) if reads else asked)
    if response.status >= 300 or not streamed.get():
        response.read = functools.partial(_read, response, _READ_SECONDS if reads else _WRITE_SECONDS)
    return response


async def _read(response: Any, seconds: float) -> bytes:
    del response.read  # which holds the response, and so itself
    taken = Taken(response.status)

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


async def _ended(awaited: Any, seconds: float) -> Any:
    try:
        return await asyncio.wait_for(awaited, seconds)
    except ServerTimeoutError:  # aiohttp's own, which is one of asyncio's
        raise
    except asyncio.TimeoutError as error:
        raise _endless(seconds) from error


def _endless(seconds: float) -> InvalidResponseError:
    return InvalidResponseError(f"what it sends has not ended after {seconds:.0f} s")


class Taken:
    """What has come of a body.

    Args:
        status: of the answer.
    """

    def __init__(self, status: int) -> None:
        self._refused = status >= 300
        self._most = _LONGEST_REFUSAL if self._refused else LONGEST
        self._data = bytearray()

    def add(self, piece: bytes) -> bool:
        """Take some bytes; whether there may be more.

        Raises:
            InvalidResponseError: if it is too much, and no refusal, of which the status tells enough.
        """
        self._data += piece
        if len(self._data) > self._most and not self._refused:
            msg = f"what it sends is longer than {self._most:,} bytes"
            raise InvalidResponseError(msg)
        return len(self._data) <= self._most

    def body(self) -> bytes:
        """All of it; nothing in place of a refusal that cannot be read.

        Raises:
            InvalidResponseError: if it is a document that defines entities.
        """
        unreadable = len(self._data) > self._most or _DEFINITION in self._data
        if unreadable and not self._refused:
            msg = "what it sends is a page for people, or a document that defines entities of its own"
            raise InvalidResponseError(msg)
        return b"" if unreadable else bytes(self._data)


def taken_from(read: Callable[[int], bytes], status: int) -> bytes:
    """The body of an answer that a thread reads; as ``received``.

    Args:
        read: returns some bytes, at most so many, and none at the end.
        status: of the answer.
    """
    taken, began = Taken(status), time.monotonic()
    while (piece := read(2**16)) and taken.add(piece):
        if time.monotonic() - began > _READ_SECONDS:
            raise _endless(_READ_SECONDS)
    return taken.body()
