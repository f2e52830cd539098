"""Bytes that are nearly all zero, of which only the others are stored."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

PIECE = 2**20
_ZEROS = bytearray(PIECE)
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Sparse:
    """Bytes, most of which are zero.

    Attributes:
        size: how many they are.
        pieces: those that are not zero, by their positions; none overlap.
        etag: differs from that of any other.
    """

    size: int
    pieces: dict[int, bytes] = field(default_factory=dict)
    etag: str = field(default_factory=lambda: f'"{next(_numbers):032x}"')

    def read(self, start: int, end: int) -> Iterator[bytes | memoryview]:
        """Those between two positions, in memories of at most a megabyte."""
        for at in sorted(self.pieces):
            data = self.pieces[at]
            if start < at + len(data) and at < end:
                yield from _zeros(at - start)
                yield data[max(start - at, 0) : end - at]
                start = at + len(data)
        yield from _zeros(end - start)

    def span(self, start: int, end: int) -> Sparse:
        """Those between two positions, apart."""
        cut = {max(at, start): data[max(start - at, 0) : end - at] for at, data in self.pieces.items() if at < end}
        return Sparse(end - start, {at - start: data for at, data in cut.items() if data})


def _zeros(count: int) -> Iterator[memoryview]:
    for at in range(0, count, PIECE):
        yield memoryview(_ZEROS)[: count - at]


def received(length: int, fill: Callable[[memoryview], int]) -> Sparse:
    """What a source brings.

    Args:
        length: in bytes.
        fill: fills a memory with the next bytes, and returns how many there were.

    Raises:
        EOFError: if it ends before.
    """
    buffer, pieces = bytearray(PIECE), {}
    for at in range(0, length, PIECE):
        wanted = min(PIECE, length - at)
        with memoryview(buffer) as memory:
            if fill(memory[:wanted]) < wanted:
                raise EOFError
        if wanted < PIECE or buffer != _ZEROS:  # whole ones are compared as fast as memory is read
            pieces[at] = bytes(buffer[:wanted])
    return Sparse(length, pieces)


def joined(parts: Iterable[Sparse]) -> Sparse:
    """Some behind each other."""
    size, pieces = 0, dict[int, bytes]()
    for part in parts:
        pieces |= {size + at: data for at, data in part.pieces.items()}
        size += part.size
    return Sparse(size, pieces)
