"""ResponseBody: reads bodies of a known length, bodies in chunks, and bodies that end with the connection.

https://www.rfc-editor.org/rfc/rfc9112#section-7.1
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fsspec_csx.s3.transport.failures import UnusualResponseError
from fsspec_csx.s3.transport.response_head import MOST_BYTES, ResponseHead

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r\n")


class ResponseBody:
    """The body of a response.

    Args:
        head: of the response.
        early: bytes that were received with the head.
        receive: receives further bytes into a memory, and returns their number.

    Attributes:
        exact: whether all of it was read, and no byte that follows it: the connection can serve another request.
    """

    def __init__(self, head: ResponseHead, early: memoryview, receive: Callable[[memoryview], int]) -> None:
        self._unread, self._receive = bytes(early), receive
        self._chunked = head.chunked
        self._left = 0 if head.chunked else head.length  # of the body or the chunk; None if it ends with the connection
        self._begun = False
        self._ended = head.length == 0

    @property
    def exact(self) -> bool:
        return self._ended and not self._unread

    def readinto(self, memory: memoryview) -> int:
        """Read some bytes into a memory that is not empty, and return their number; 0 at the end.

        Raises:
            ConnectionError: if the connection ends before the body.
            UnusualResponseError: if a chunk is malformed.
        """
        if self._chunked and not self._left and not self._ended:
            self._next_chunk()
        if self._ended:
            return 0
        count = self._some(memory[: self._left])
        if self._left is None:
            return count
        if not count:
            raise _cut()
        self._left -= count
        self._ended = not self._left and not self._chunked
        return count

    def read(self, most: int) -> bytes:
        """Read at most so many bytes; none at the end."""
        memory = memoryview(bytearray(most))
        return bytes(memory[: self.readinto(memory)])

    def _next_chunk(self) -> None:
        if self._begun and self._line() != b"\r\n":
            raise _damaged()
        self._begun = True
        if (size := _SIZE.fullmatch(self._line())) is None:
            raise _damaged()
        self._left = int(size[1], 16)
        if not self._left:
            self._end()

    def _end(self) -> None:
        """Read the trailers, which say nothing about the object."""
        length = 0
        while (line := self._line()) != b"\r\n":
            length += len(line)
            if length > MOST_BYTES or not _TRAILER.fullmatch(line):
                raise _damaged()
        self._ended = True

    def _some(self, memory: memoryview) -> int:
        if not self._unread:
            return self._receive(memory)
        count = min(len(self._unread), len(memory))
        memory[:count], self._unread = self._unread[:count], self._unread[count:]
        return count

    def _line(self) -> bytes:
        """Read a line, with its end."""
        while not (end := self._unread.find(b"\n") + 1):
            if len(self._unread) > MOST_BYTES:
                raise _damaged()
            memory = memoryview(bytearray(4096))
            if not (count := self._receive(memory)):
                raise _cut()
            self._unread += memory[:count]
        line, self._unread = self._unread[:end], self._unread[end:]
        return line


def _cut() -> ConnectionError:
    return ConnectionError("The connection ended before the end of a response.")


def _damaged() -> UnusualResponseError:
    return UnusualResponseError("its body is damaged")
