"""Items of a shard that the manifest does not describe, each read as a file of its own, with few requests for all."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from fsspec_csx.formats.dcp.manifest import ItemLocation
from fsspec_csx.tensors.source import HEAD, TAIL, Source
from fsspec_csx.tensors.staging import batches

T = TypeVar("T")

_BATCH = 64 * 2**20

SMALL = HEAD + TAIL
"""Items of at most so many bytes are read whole at once."""


def sliced(source: Source, items: Sequence[T], place: Callable[[T], ItemLocation]) -> Iterator[list[tuple[T, Source]]]:
    """Items with their first and last bytes, which are read for many of them at once."""
    ordered = sorted(items, key=lambda item: place(item).offset)
    for batch in batches(ordered, lambda item: min(place(item).length, SMALL), _BATCH):
        files = [_File(source, place(each)) for each in batch]
        source.read([span for file in files for span in file.ends])
        yield [(each, Source(file, file.size)) for each, file in zip(batch, files, strict=True)]


class _File(io.RawIOBase):
    """A part of a shard as a file whose ends are in memory.

    Attributes:
        size: in bytes.
        ends: the positions in the shard of its first and last bytes, and the memories that are to be filled with them.
    """

    def __init__(self, source: Source, place: ItemLocation) -> None:
        super().__init__()
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

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1) -> bytes | None:
        left = max(0, self.size - self._position)  # or a hostile size would be allocated
        return super().read(left if size < 0 else min(size, left))

    def readinto(self, buffer: Any) -> int:
        memory = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        self.readinto_many([(self._position, memory)])
        self._position += len(memory)
        return len(memory)
