"""Ranges: which bytes of an object one request fetches, and the memories that they fill."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from fsspec_csx.errors import EndpointError

Check = Callable[[memoryview, int], int]

# Shorter memories are read together and copied: a call of the system for each would take longer.
_SMALL = 64 * 1024
_TOGETHER = 2**20
# So often another answer than was asked for is taken for an accident.
_WRONG_ANSWERS = 3


class _Piece:
    """Bytes that follow each other: those of one memory, or of several small ones with the gaps between them.

    Attributes:
        start: position in the object.
        length: in bytes.
        homes: the memories: the number of the span that each is a part of, its position in the object, and itself.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.length = 0
        self.targets: list[tuple[int, int, memoryview]] = []
        self.crc = 0
        self._memory: memoryview | None = None

    @property
    def direct(self) -> bool:
        """Whether the bytes are read straight into their home."""
        return len(self.targets) == 1 and len(self.targets[0][2]) == self.length

    def add(self, span: int, position: int, memory: memoryview) -> None:
        self.targets.append((span, position, memory))
        self.length = position + len(memory) - self.start

    @property
    def memory(self) -> memoryview:
        if self._memory is None:
            self._memory = self.targets[0][2] if self.direct else memoryview(bytearray(self.length))
        return self._memory

    def scatter(self) -> None:
        """Bring the bytes home, once all have come, and let go of the memory that they were read into."""
        memory, self._memory = self.memory, None
        if not self.direct:
            for _, position, target in self.targets:
                target[:] = memory[position - self.start :][: len(target)]


class RangeRequest:
    """What one request fetches.

    Args:
        start: position of the first byte.
        check: computes a checksum of the bytes as they come, from a memory and the checksum before it.
        probing: whether the object may end before the range does, and is of unknown size: ``length`` becomes what there
            is, and the object is asked for whole, since only then does the server tell its checksum.
        clipped: whether the object may end before the range does; then ``length`` becomes what there is.

    Attributes:
        length: in bytes.
        filled: how many of them have come.
        etag: of the object that they are of.
        total: the object's size in bytes, once an answer has told it.
        headers: of the answer.
        thread: what fills it, while and after it does.
        interrupt: ends the filling at once; None while nothing fills it.
        given_up: set to make the filling fail soon.
        failure: what went wrong on this machine's side, so that there is no use in asking for the bytes again.
    """

    def __init__(self, start: int, *, check: Check | None = None, probing: bool = False, clipped: bool = False) -> None:
        self.start = start
        self.length = 0
        self.filled = 0
        self.etag: str | None = None
        self.total: int | None = None
        self.headers: Mapping[str, str] = {}
        self.thread: Future[Any] | None = None
        self.interrupt: Callable[[], object] | None = None
        self.given_up = False
        self.failure: OSError | None = None
        self._wrong = 0
        self._check = check
        self._probing = probing
        self._clipped = clipped
        self._pieces: list[_Piece] = []
        self._current = 0
        self._unclipped = 0

    @property
    def end(self) -> int:
        """Position behind the last byte."""
        return self.start + self.length

    def give_up(self) -> None:
        """Let what fills it end soon."""
        self.given_up = True
        if (interrupt := self.interrupt) is not None:
            interrupt()

    @property
    def harmful(self) -> bool:
        """Whether it is being filled at this moment."""
        return self.interrupt is not None

    @property
    def complete(self) -> bool:
        """Whether all bytes have come."""
        return self.filled == self.length

    def add(self, span: int, position: int, memory: memoryview) -> None:
        """Let a memory, which is a part of the span of that number, be filled too; what lies before it is skipped."""
        last = self._pieces[-1] if self._pieces else None
        small = len(memory) < _SMALL
        if small and last is not None and not last.direct and last.length < _TOGETHER:
            last.add(span, position, memory)
        else:
            if not small and position > self.end:  # a gap of its own, so that the memory is filled directly
                self._pieces.append(_Piece(self.end))
                self._pieces[-1].length = position - self.end
            self._pieces.append(_Piece(position if not small else self.end))
            self._pieces[-1].add(span, position, memory)
        self.length = position + len(memory) - self.start

    def header(self) -> str | None:
        """The value of the header ``Range`` for what has not come yet; None to ask for the whole object."""
        if self._probing and not self.filled:
            return None
        return f"bytes={self.start + self.filled}-{self.end - 1}"

    def expect(self, status: int, headers: Mapping[str, str]) -> None:
        """Check that an answer brings what is missing.

        Raises:
            OSError: if it brings something else. If the object was replaced since the first bytes came, all of them
                are to be fetched again.
            EndpointError: if something else was brought several times.
        """
        if self.filled and headers.get("ETag") != self.etag:
            self.restart()
            msg = "The object was replaced while it was read."
            raise OSError(msg)
        try:
            self._expect(status, headers)
        except OSError as error:
            self._wrong += 1
            if self._wrong < _WRONG_ANSWERS:
                raise
            reason = f"{self._wrong} answers were not what was asked for; the last: {error}"
            self.failure = EndpointError(reason, "Look for a proxy or a cache on the way that changes answers.")
            raise self.failure from error

    def _expect(self, status: int, headers: Mapping[str, str]) -> None:
        first, length, self.total = _content(status, headers)
        if not self.filled:
            self.length = self._unclipped = self._unclipped or self.length  # what came before was another object
        if self._probing and not self.filled and self.total is not None:
            self.length = min(self.length, self.total)
            length = self.length
        elif self._clipped and self.total is not None and self.total == first + (length or 0):
            self.length = min(self.length, self.total - self.start)
        self.etag, self.headers = headers.get("ETag"), headers
        if first != self.start + self.filled or length not in (None, self.length - self.filled):
            due = f"{self.length - self.filled} from {self.start + self.filled}"
            msg = f"{length} bytes from {first} on came where {due} were due."
            raise OSError(msg)

    def restart(self) -> None:
        """Forget what has come."""
        self.filled = self._current = 0
        for piece in self._pieces:
            piece.crc = 0

    @property
    def cut_off(self) -> bool:
        """Whether the answer has more bytes than are read of it."""
        return self._probing and self.total is not None and self.total > self.end

    def next_buffer(self, most: int) -> memoryview:
        """The next memory to be filled, of at most so many bytes; empty when the range is complete."""
        if self.complete:
            return memoryview(b"")
        piece = self._pieces[self._current]
        offset = self.start + self.filled - piece.start
        return piece.memory[offset : min(offset + most, offset + self.length - self.filled)]

    def advance(self, count: int) -> None:
        """So many bytes of ``next_buffer`` were filled."""
        piece = self._pieces[self._current]
        offset = self.start + self.filled - piece.start
        if self._check is not None and piece.direct:
            piece.crc = self._check(piece.memory[offset : offset + count], piece.crc)
        self.filled += count
        if offset + count == piece.length:
            piece.scatter()
            self._current += 1

    def accept(self, data: bytes) -> None:
        """Fill the whole range from bytes that were read elsewhere.

        Raises:
            OSError: if they are too few or too many.
        """
        if self._probing:
            self.total = len(data)
            data = data[: self.length]
        if self._probing or self._clipped:
            self.length = min(self.length, len(data))
        if len(data) != self.length:
            msg = f"{len(data)} bytes came where {self.length} were asked for."
            raise OSError(msg)
        while len(memory := self.next_buffer(self.length)):
            memory[:] = data[self.filled : self.filled + len(memory)]
            self.advance(len(memory))

    def checksums(self) -> list[tuple[int, int, int, int]]:
        """The number of the span, position, checksum and length of each memory that was filled."""
        check = self._check
        assert check is not None
        return [
            (span, position, piece.crc if piece.direct else check(memory, 0), len(memory))
            for piece in self._pieces
            for span, position, memory in piece.targets
        ]


class FileRange(RangeRequest):
    """A range whose bytes are written to a local file, at the same positions as in the object.

    Args:
        descriptor: of the file, open for writing.
        length: in bytes.
    """

    def __init__(self, descriptor: int, start: int, length: int, **kwargs: Any) -> None:
        super().__init__(start, **kwargs)
        self.length = length
        self._descriptor = descriptor
        self._buffer = memoryview(b"")
        self._checksum = 0

    def restart(self) -> None:
        """Forget what has come."""
        self.filled = self._checksum = 0

    def next_buffer(self, most: int) -> memoryview:
        """Memory for the next bytes, at most so many; empty when the range is complete."""
        if not self._buffer:
            self._buffer = memoryview(bytearray(most))
        return self._buffer[: min(most, self.length - self.filled)]

    def advance(self, count: int) -> None:
        """Write so many bytes of ``next_buffer``.

        Raises:
            OSError: if the disk is full, for instance.
        """
        memory, position = self._buffer[:count], self.start + self.filled
        try:
            while memory:
                written = os.pwrite(self._descriptor, memory, position)
                memory, position = memory[written:], position + written
        except OSError as error:
            self.failure = error
            raise
        if self._check is not None:
            self._checksum = self._check(self._buffer[:count], self._checksum)
        self.filled += count
        if self.complete:
            self._buffer = memoryview(b"")

    def checksums(self) -> list[tuple[int, int, int, int]]:
        """As of ``Range``."""
        return [(0, self.start, self._checksum, self.length)]


def _content(status: int, headers: Mapping[str, str]) -> tuple[int, int | None, int | None]:
    """Where the body of an answer begins in the object, its length, and the object's size, as far as they are told."""
    told = headers.get("Content-Length")
    if told is not None and not told.isdecimal():
        msg = f"an answer tells its length by Content-Length {told!r}."
        raise OSError(msg)
    length = None if told is None else int(told)
    if status != 206:
        return 0, length, length
    span, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    if not first.isdecimal() or not (total.isdecimal() or total == "*"):
        msg = f"an answer says where it belongs by Content-Range {headers.get('Content-Range')!r}."
        raise OSError(msg)
    return int(first), length, int(total) if total.isdecimal() else None
