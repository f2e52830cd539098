"""Items of a shard that the manifest does not describe, each read as a file of its own, with few requests for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from fsspec_csx.formats.dcp.manifest import ItemLocation
from fsspec_csx.tensors.source import HEAD, TAIL, Source
from fsspec_csx.tensors.staging import batches

T = TypeVar("T")

_BATCH = 64 * 2**20
_LINE = 512  # bytes that are looked through at a time for the end of a line

SMALL = HEAD + TAIL
"""Items of at most so many bytes are read whole at once."""


def sliced(source: Source, items: Sequence[T], place: Callable[[T], ItemLocation]) -> Iterator[list[tuple[T, Source]]]:
    """Items with their first and last bytes, which are read for many of them at once."""
    ordered = sorted(items, key=lambda item: place(item).offset)
    for batch in batches(ordered, lambda item: min(place(item).length, SMALL), _BATCH):
        files = [_File(source, place(each)) for each in batch]
        source.read([span for file in files for span in file.ends])
        yield [(each, Source(file, file.size)) for each, file in zip(batch, files, strict=True)]


class _File:
    """A part of a shard as a file whose ends are in memory.

    Attributes:
        size: in bytes.
        ends: the positions in the shard of its first and last bytes, and the memories that are to be filled with them.
    """

    def __init__(self, source: Source, place: ItemLocation) -> None:
        self._source = source
        self._start = place.offset
        self._position = 0
        self.size = place.length
        spans = [(0, HEAD), (self.size - TAIL, TAIL)] if self.size > SMALL else [(0, self.size)]
        self.ends = [(self._start + start, memoryview(bytearray(length))) for start, length in spans]

    def readinto_many(
        self,
        spans: Sequence[tuple[int, memoryview]],
        *,
        advance: Callable[[int], object] | None = None,
        crc32: bool = False,
    ) -> list[int]:
        """As of a ``CSXFile``."""
        if not crc32 and all(self._answered(start, memory) for start, memory in spans):
            return []
        return self._source.read([(self._start + start, memory) for start, memory in spans], crc32=crc32)

    def _answered(self, start: int, memory: memoryview) -> bool:
        for position, kept in self.ends:
            offset = self._start + start - position
            if offset >= 0 and offset + len(memory) <= len(kept):
                memory[:] = kept[offset : offset + len(memory)]
                return True
        return False

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position in bytes and return it."""
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, fewer only at the end; -1 for all."""
        left = max(0, self.size - self._position)
        memory = memoryview(bytearray(left if size < 0 else min(size, left)))
        self.readinto_many([(self._position, memory)])
        self._position += len(memory)
        return memory.tobytes()

    def readline(self) -> bytes:
        """Read up to and including the next newline."""
        line = b""
        while not line.endswith(b"\n") and (piece := self.read(_LINE)):
            head, found, _ = piece.partition(b"\n")
            line += head + found
            self._position -= len(piece) - len(head) - len(found)
        return line
