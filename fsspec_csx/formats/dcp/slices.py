"""Reads items of a shard that the manifest does not describe as separate files, with few requests for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from fsspec_csx.formats.dcp.manifest import ItemLocation, Plain
from fsspec_csx.formats.torch_zip.single_tensor_archive import Frame, frame
from fsspec_csx.tensors.crc32 import crc32_of
from fsspec_csx.tensors.source import HEAD, TAIL, Source, SpanReader, Spans, memory_of
from fsspec_csx.tensors.staging import batches

T = TypeVar("T")

_BATCH = 64 * 2**20

SMALL = HEAD + TAIL
"""Items up to this size in bytes are read whole."""


def sliced(source: Source, items: Sequence[T], place: Callable[[T], ItemLocation]) -> Iterator[list[tuple[T, Item]]]:
    """Yield batches of items, with the first and last bytes of all items of a batch read in one call."""
    ordered = sorted(items, key=lambda item: place(item).offset)
    for batch in batches(ordered, lambda item: min(place(item).length, SMALL), _BATCH):
        files = [Item(source, place(each)) for each in batch]
        _read_ends(source, files)
        yield list(zip(batch, files, strict=True))


def _read_ends(source: Source, files: Sequence[Item]) -> None:
    """Read the ends of items; adjacent ends as one range."""
    parts = [(file, start, length) for file in files for start, length in file.parts]
    memory = memory_of(torch.empty(sum(length for *_, length in parts), dtype=torch.uint8).untyped_storage())
    ranges: list[list[int]] = []  # position in the shard, first and last byte in memory
    filled = 0
    for file, start, length in parts:
        end = filled + length
        file.ends.append((start, memory[filled:end]))
        if ranges and file.start + start - ranges[-1][0] == filled - ranges[-1][1]:
            ranges[-1][2] = end
        else:
            ranges.append([file.start + start, filled, end])
        filled = end
    source.read([(position, memory[first:end]) for position, first, end in ranges])


class Frames:
    """The bytes that torch.save writes around tensors of known dtypes and shapes; items that match need no parsing."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Frame, Plain]] = {}
        self._starts: set[int] = set()

    def learn(self, plain: Plain) -> None:
        """Add the dtype and the shape of a tensor."""
        if made := frame(plain.dtype, plain.shape):
            start = len(made.before)
            self._known[made.before] = made, Plain(start, plain.dtype, plain.shape, None)
            self._starts.add(start)

    def plain_in(self, item: memoryview) -> Plain | None:
        """Find the tensor in a whole item, if each byte, including the checksum, is as torch.save writes it."""
        for start in self._starts:
            made, plain = self._known.get(bytes(item[:start]), (None, None))
            if made and plain and made.size == len(item):
                end = start + plain.nbytes
                return plain if item[end:] == made.after(crc32_of(item[start:end])) else None
        return None


class Item(SpanReader):
    """A part of a shard as a file, with its ends in memory.

    Attributes:
        start: the position of its first byte in the shard.
        size: in bytes.
        parts: the positions and lengths of its first and last bytes.
        ends: the parts that were read, each with its position in the item.
    """

    def __init__(self, source: Source, place: ItemLocation) -> None:
        super().__init__()
        self._source = source
        self.start = place.offset
        self.size = place.length
        self.parts = [(0, HEAD), (self.size - TAIL, TAIL)] if self.size > SMALL else [(0, self.size)]
        self.ends: list[tuple[int, memoryview]] = []

    @property
    def whole(self) -> memoryview | None:
        """All of it, if it is in memory."""
        return self.ends[0][1] if self.size <= SMALL else None

    def readinto_many(
        self,
        spans: Spans,
        *,
        advance: Callable[[int], object] | None = None,
        crc32: bool = False,
    ) -> list[int]:
        if not crc32 and all(self._answered(start, memory) for start, memory in spans):
            return []
        return self._source.read([(self.start + start, memory) for start, memory in spans], crc32=crc32)

    def _answered(self, start: int, memory: memoryview) -> bool:
        for position, kept in self.ends:
            offset = start - position
            if offset >= 0 and offset + len(memory) <= len(kept):
                memory[:] = kept[offset : offset + len(memory)]
                return True
        return False

    def read(self, size: int = -1) -> bytes | None:
        left = max(0, self.size - self._position)  # a damaged file may ask for any size
        return super().read(left if size < 0 else min(size, left))
