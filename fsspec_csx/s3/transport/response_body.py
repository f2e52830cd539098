"""Bodies of responses as http.client decodes them: chunks, a known length, or all that comes."""

from __future__ import annotations

import io
from collections.abc import Callable
from http.client import HTTPResponse
from typing import Any

from fsspec_csx.s3.transport.response_head import ResponseHead


class _Received(io.RawIOBase):
    """The body of a response as it comes: first the bytes received with its head, then those from the socket.

    http.client takes it for a socket, and decodes the body.
    """

    def __init__(self, begin: bytes, length: int | None, receive: Callable[[memoryview], int]) -> None:
        self._begin, self._receive = memoryview(begin), receive
        self._left = length  # so that no byte of a next response is taken

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if count := min(len(self._begin), len(buffer)):
            buffer[:count], self._begin = self._begin[:count], self._begin[count:]
            return count
        memory = memoryview(buffer)[: self._left]
        count = self._receive(memory) if memory else 0
        if self._left is not None:
            self._left -= count
        return count


def body_reader(head: ResponseHead, early: memoryview, receive: Callable[[memoryview], int]) -> HTTPResponse:
    """Return a reader of the body of a response.

    Args:
        head: of the response.
        early: bytes of the body that were received with the head.
        receive: receives further bytes into a memory, and returns their number.
    """
    if head.length is not None:
        early, framing = early[: head.length], f"Content-Length: {head.length}"
    else:
        framing = "Transfer-Encoding: chunked" if head.chunked else "Connection: close"
    begin, left = f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n".encode(), head.length
    source = _Received(begin + early, None if left is None else left - len(early), receive)
    reader = HTTPResponse(source, method="GET")  # type: ignore[arg-type]
    reader.begin()
    return reader
