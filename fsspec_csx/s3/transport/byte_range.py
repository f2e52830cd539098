"""RangeRequest: the byte range of an object that one request fetches, and the buffers that it fills."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from fsspec_csx.errors import EndpointError
from fsspec_csx.storage.atomic import write_at

Check = Callable[[memoryview, int], int]

# Smaller buffers are read together and then copied, as a system call for each would take longer.
_SMALL = 64 * 1024
_TOGETHER = 2**20
# After this many wrong responses, an error blames the endpoint.
_WRONG_ANSWERS = 3


class _Piece:
    """Consecutive bytes: those of one buffer, or of several small buffers with the gaps between them.

    ``targets`` has, for each buffer, the number of its span, its position in the object, and the buffer.
    """

    def __init__(self, start: int) -> None:
        self.start = start
        self.length = 0
        self.targets: list[tuple[int, int, memoryview]] = []
        self.crc = 0
        self._memory: memoryview | None = None

    @property
    def direct(self) -> bool:
        """Whether the bytes are read directly into their target."""
        return len(self.targets) == 1 and len(self.targets[0][2]) == self.length

    @property
    def is_small(self) -> bool:
        """Whether its buffers are small ones."""
        return len(self.targets[-1][2]) < _SMALL

    def add(self, span: int, position: int, memory: memoryview) -> None:
        self.targets.append((span, position, memory))
        self.length = position + len(memory) - self.start

    @property
    def memory(self) -> memoryview:
        if self._memory is None:
            self._memory = self.targets[0][2] if self.direct else memoryview(bytearray(self.length))
        return self._memory

    def scatter(self) -> None:
        """Copy the bytes to their targets once all have arrived, and free the intermediate buffer."""
        memory, self._memory = self.memory, None
        if not self.direct:
            for _, position, target in self.targets:
                target[:] = memory[position - self.start :][: len(target)]


class RangeRequest:
    """The bytes that one request fetches.

    Args:
        start: position of the first byte.
        check: computes a checksum as bytes arrive, from a buffer and the checksum of the bytes before it.
        probing: whether the size of the object is unknown. Then ``length`` shrinks to that size, and the request is
            for the whole object, since only then the server sends its checksum.
        clipped: whether the object may end before the range does; then ``length`` shrinks to its end.

    Attributes:
        length: in bytes.
        filled: how many bytes have arrived.
        etag: of the object that the bytes are from.
        total: the object's size in bytes, once a response has given it.
        unsized: whether the response gives neither the object's size nor the length of its body.
        headers: of the response.
        thread: the future of the thread that fills it.
        interrupt: aborts the connection; None while no thread fills it.
        given_up: whether the thread is to fail soon.
        failure: an error of this machine, which no retry would fix.
        moved: called with each number of bytes that arrive.
        announce: called in the thread when a response gives the size of an object that has more bytes than the range.
    """

    def __init__(self, start: int, *, check: Check | None = None, probing: bool = False, clipped: bool = False) -> None:
        self.start = start
        self.length = 0
        self.filled = 0
        self.etag: str | None = None
        self.total: int | None = None
        self.unsized = False
        self.headers: Mapping[str, str] = {}
        self.thread: Future[Any] | None = None
        self.interrupt: Callable[[], object] | None = None
        self.given_up = False
        self.failure: OSError | None = None
        self.moved: Callable[[int], object] = lambda count: None
        self.announce: Callable[[], object] = lambda: None
        self._wrong = 0
        self._check = check
        self._probing = probing
        self._clipped = clipped
        self._pieces: list[_Piece] = []
        self._current = 0
        self._unclipped = 0

    @property
    def end(self) -> int:
        return self.start + self.length

    def give_up(self) -> None:
        """Make the thread that fills the range fail soon."""
        self.given_up = True
        if (interrupt := self.interrupt) is not None:
            interrupt()

    @property
    def uses_caller_memory(self) -> bool:
        """Whether a thread fills the range now."""
        return self.interrupt is not None

    @property
    def complete(self) -> bool:
        return self.filled == self.length

    def add(self, span: int, position: int, memory: memoryview) -> None:
        """Add a buffer of the span with this number; the bytes between it and the previous buffer are skipped."""
        last = self._pieces[-1] if self._pieces else None
        small = len(memory) < _SMALL
        if small and last is not None and last.is_small and last.length < _TOGETHER:
            last.add(span, position, memory)
        else:
            if not small and position > self.end:  # a piece for the gap, so that the memory is filled directly
                self._pieces.append(_Piece(self.end))
                self._pieces[-1].length = position - self.end
            self._pieces.append(_Piece(position if not small else self.end))
            self._pieces[-1].add(span, position, memory)
        self.length = position + len(memory) - self.start

    def header(self) -> str | None:
        """Return the ``Range`` header for the missing bytes; None to request the whole object."""
        if self._probing and (not self.filled or self.unsized):
            return None
        return f"bytes={self.start + self.filled}-{self.end - 1}"

    def expect(self, status: int, headers: Mapping[str, str]) -> None:
        """Check that a response contains the missing bytes.

        Raises:
            OSError: if it does not. If the object was replaced meanwhile, all bytes are fetched again.
            EndpointError: after several such responses.
        """
        if self.given_up:
            msg = "The request was given up."
            raise OSError(msg)
        if self.unsized:
            self.restart()
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
            reason = f"{self._wrong} responses did not bring the bytes requested; the last: {error}"
            self.failure = EndpointError(reason, "Look for a proxy or a cache on the way that changes responses.")
            raise self.failure from error
        if self.cut_off and not self.unsized:
            self.announce()

    def share(self, total: int) -> int:
        """Return how many bytes of an object of this size a probing request reads."""
        return min(self.length, total)

    def _expect(self, status: int, headers: Mapping[str, str]) -> None:
        first, length, total = _content(status, headers)
        if total is not None or not self.filled:  # the response for the rest of an object may omit its size
            self.total = total
        if not self.filled:
            self.length = self._unclipped = self._unclipped or self.length  # undo the clipping by a former object
        if self._probing and not self.filled and self.total is not None:
            self.length = length = self.share(self.total)
        elif self._clipped and self.total is not None and self.total == first + (length or 0):
            self.length = min(self.length, self.total - self.start)
        self.unsized = self._probing and length is None and self.total is None
        if self.unsized and (coding := headers.get("Content-Encoding")):  # other bytes than those of the object
            msg = f"a response has Content-Encoding {coding!r} and no length."
            raise OSError(msg)
        self.etag, self.headers = headers.get("ETag"), headers
        if first != self.start + self.filled or length not in (None, self.length - self.filled):
            due = f"{self.length - self.filled} from {self.start + self.filled}"
            msg = f"{length} bytes from {first} on came where {due} were due."
            raise OSError(msg)

    def restart(self) -> None:
        """Discard the bytes that have arrived."""
        self.filled = self._current = 0
        for piece in self._pieces:
            piece.crc = 0

    def forget_buffers(self) -> None:
        """Drop the buffers of a complete range: their owner may resize them, though a thread still holds the range."""
        self._pieces.clear()

    def forget_failures(self) -> None:
        """Clear the count of wrong responses, and the failure."""
        self.failure, self._wrong = None, 0

    @property
    def cut_off(self) -> bool:
        """Whether the object has more bytes than the range, or may have."""
        return self._probing and (self.unsized if self.total is None else self.total > self.end)

    def end_body(self, *, whole: bool) -> None:
        """End an unsized range with the bytes received; ``whole`` if these are certainly the whole object."""
        self.length = self.filled
        if whole:
            self.total, self.unsized = self.filled, False

    def next_buffer(self, most: int) -> memoryview:
        """Return the next buffer to fill, at most ``most`` bytes; empty when the range is complete."""
        if self.complete:
            return memoryview(b"")
        piece = self._pieces[self._current]
        offset = self.start + self.filled - piece.start
        return piece.memory[offset : min(offset + most, offset + self.length - self.filled)]

    def advance(self, count: int) -> None:
        """Record that ``count`` bytes of ``next_buffer`` were filled."""
        self.moved(count)
        piece = self._pieces[self._current]
        offset = self.start + self.filled - piece.start
        if self._check is not None and piece.direct:
            piece.crc = self._check(piece.memory[offset : offset + count], piece.crc)
        self.filled += count
        if offset + count == piece.length:
            piece.scatter()
            self._current += 1

    def checksums(self) -> list[tuple[int, int, int, int]]:
        """Return the number of the span, position, checksum and length of each buffer."""
        check = self._check
        assert check is not None
        return [
            (span, position, piece.crc if piece.direct else check(memory, 0), len(memory))
            for piece in self._pieces
            for span, position, memory in piece.targets
        ]


class FileRange(RangeRequest):
    """A range whose bytes are written to a local file, at their positions in the object."""

    def __init__(self, descriptor: int, start: int, length: int, **kwargs: Any) -> None:
        super().__init__(start, **kwargs)
        self.length = length
        self._descriptor = descriptor
        self._buffer = memoryview(b"")
        self._checksum = 0

    def restart(self) -> None:
        self.filled = self._checksum = 0

    def next_buffer(self, most: int) -> memoryview:
        if not self._buffer:
            self._buffer = memoryview(bytearray(min(most, self.length - self.filled)))
        return self._buffer[: min(most, self.length - self.filled)]

    def advance(self, count: int) -> None:
        self.moved(count)
        try:
            write_at(self._descriptor, self._buffer[:count], self.start + self.filled)
        except OSError as error:  # for example because the disk is full
            self.failure = error
            raise
        if self._check is not None:
            self._checksum = self._check(self._buffer[:count], self._checksum)
        self.filled += count
        if self.complete:
            self._buffer = memoryview(b"")

    def checksums(self) -> list[tuple[int, int, int, int]]:
        return [(0, self.start, self._checksum, self.length)]


def _content(status: int, headers: Mapping[str, str]) -> tuple[int, int | None, int | None]:
    """Return a response's position in the object, its length, and the object's size; None for missing values."""
    length_header = headers.get("Content-Length")
    if length_header is not None and not length_header.isdecimal():
        msg = f"a response has Content-Length {length_header!r}."
        raise OSError(msg)
    length = None if length_header is None else int(length_header)
    span, _, total = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first, _, last = span.partition("-")
    if not first.isdecimal() or not (total.isdecimal() or total == "*"):
        if status != 206:  # some stores answer with 200 also if they return a range
            return 0, length, length
        msg = f"a response has Content-Range {headers.get('Content-Range')!r}."
        raise OSError(msg)
    span_length = int(last) + 1 - int(first) if last.isdecimal() else length
    if status != 206 and length not in (None, span_length):  # the header is that of another response
        return 0, length, length
    if length is None:  # the body comes in chunks
        length = span_length
    return int(first), length, int(total) if total.isdecimal() else None
