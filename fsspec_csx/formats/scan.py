"""Reads a file from start to end, and compares the records in it with their checksums."""

from __future__ import annotations

import functools
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from fsspec_csx.formats.torch_zip import zip_directory
from fsspec_csx.formats.torch_zip.zip_directory import LOCAL, STORED, ZipEntry
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.source import Source, memory_of
from fsspec_csx.tensors.staging import read_ahead

_PIECE = 32 * 2**20
_DEFLATED = 8
_INFLATED = 2**20  # bytes at a time

Sum = Callable[[memoryview, int], int]
"""Computes a checksum of bytes, given the checksum of the bytes before them."""


def scan(source: Source, entries: Sequence[ZipEntry], compute: Sum) -> tuple[list[ZipEntry], list[ZipEntry], int]:
    """Read a file, with at most 64 MiB in memory; ``entries`` are the records if it is an archive.

    Returns:
        The records with a wrong checksum, those with a wrong local header, and the checksum of the whole file.
    """
    waiting = deque(sorted(entries, key=lambda entry: entry.header))
    # Each piece also includes the header of a record that begins at its end.
    margin = max((LOCAL.size + len(entry.name) for entry in entries), default=0)
    under_way: list[_Record] = []
    wrong: list[ZipEntry] = []
    lost: list[ZipEntry] = []
    total = 0
    with read_ahead(_pieces(source, margin)) as pieces:
        for start, memory in pieces:
            piece = memory[:_PIECE]
            while waiting and waiting[0].header < start + len(piece):
                entry = waiting.popleft()
                offset = _offset(memory[entry.header - start :], entry)
                if offset is None:
                    lost.append(entry)
                else:
                    under_way.append(_Record(entry, offset))
            for record in under_way:
                record.add(start, piece)
            end = start + len(piece)
            wrong += [record.entry for record in under_way if record.end <= end and record.is_wrong()]
            under_way = [record for record in under_way if record.end > end]
            total = compute(piece, total)
    return wrong + [record.entry for record in under_way], lost, total


def is_checked(entry: ZipEntry) -> bool:
    """Return whether a record has a checksum that can be compared."""
    return bool(entry.crc32 or not entry.size) and entry.method in (STORED, _DEFLATED)


def _pieces(source: Source, margin: int) -> Iterator[Callable[[], tuple[int, memoryview]]]:
    """Yield a function for each piece, which reads it and returns its position, and its bytes with some that follow."""
    size, count = min(source.size, _PIECE + margin), 1 if source.size <= _PIECE else 2
    memories = [memory_of(torch.empty(size, dtype=torch.uint8).untyped_storage()) for _ in range(count)]

    def read(number: int) -> tuple[int, memoryview]:
        start = number * _PIECE
        memory = memories[number % 2][: source.size - start]
        source.read([(start, memory)])
        return start, memory

    return (functools.partial(read, number) for number in range(-(-source.size // _PIECE)))


def _offset(memory: memoryview, entry: ZipEntry) -> int | None:
    """Return where the bytes of a record begin, by its local header; None if the header belongs to another record."""
    offset = zip_directory.data_offset(bytes(memory[: LOCAL.size]), entry)
    named = bytes(memory[LOCAL.size : LOCAL.size + len(entry.name)])
    return offset if named == entry.name else None


class _Record:
    """Checks a record while its bytes are read, up to ``end``."""

    def __init__(self, entry: ZipEntry, offset: int) -> None:
        self.entry = entry
        self.end = offset + entry.compressed
        self._start = offset
        self._crc = RunningCrc32()
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == _DEFLATED else None
        self._broken = False

    def add(self, start: int, memory: memoryview) -> None:
        """Add those of its bytes that are in ``memory``, which begins at ``start``."""
        first, last = max(self._start - start, 0), self.end - start
        data = memory[first : max(first, last)]
        if self._inflater is None:
            self._crc.add(data)
        elif data and not self._broken:
            try:
                self._inflate(data)
            except zlib.error:
                self._broken = True

    def _inflate(self, data: memoryview) -> None:
        assert self._inflater is not None
        rest: memoryview | bytes = data
        while rest and self._crc.size <= self.entry.size:
            self._crc.add(self._inflater.decompress(rest, _INFLATED))
            rest = self._inflater.unconsumed_tail

    def is_wrong(self) -> bool:
        """Return whether its size or its checksum is wrong."""
        return is_checked(self.entry) and (
            self._broken or (self._crc.size, self._crc.value) != (self.entry.size, self.entry.crc32)
        )
