"""A sharded checkpoint as one file: each tensor has a place in it, wherever its parts are."""

from __future__ import annotations

import bisect
from collections.abc import Callable

import torch
from zlib_ng import zlib_ng

from fsspec_csx.formats import names
from fsspec_csx.formats.skeleton import Record, Skeleton
from fsspec_csx.formats.source import Source, Spans, memory_of
from fsspec_csx.sharded import manifest, whole
from fsspec_csx.sharded.folder import Folder
from fsspec_csx.sharded.reading import read_tensors


class ShardedSource(Source):
    """A sharded checkpoint that is read in spans, each tensor whole: those of the last spans stay in memory.

    Args:
        folder: where it lies.

    Attributes:
        size: the bytes of all tensors.
        found: what it holds.

    Raises:
        CheckpointError: if it is not what it should be.
        OSError: what the filesystem raised; FileNotFoundError is among it.
    """

    def __init__(self, folder: Folder) -> None:
        # Not as of Source: there is no file.
        self.file = None
        self.advance: Callable[[int], object] = lambda count: None
        self._folder = folder
        self._metadata = manifest.read(folder)
        self._filled: dict[int, torch.Tensor] = {}
        self._entries: list[whole.Entry] = []
        self._starts: list[int] = []
        self.size = 0
        state = whole.nested(self._metadata)
        entries = [entry for _, entry in names.walk(state) if isinstance(entry, whole.Entry)]
        # Memory that nobody touches takes none.
        tensors = {entry.name: self._empty(entry) for entry in entries if entry.tensor}
        records = []
        for entry in entries:
            if entry.tensor and tensors[entry.name].nbytes:
                records.append(Record(entry.name, self.size, tensors[entry.name].untyped_storage()))
                self._entries.append(entry)
                self._starts.append(self.size)
                self.size += tensors[entry.name].nbytes
        values = whole.values(folder, self._metadata, entries)
        self.found = Skeleton(whole.replaced(state, {**tensors, **values}), records)

    @property
    def kept(self) -> int:
        """How many bytes are kept."""
        return 0

    def read(self, spans: Spans, *, crc32: bool = False) -> list[int]:
        """As of ``Source``; no span reaches over the end of a tensor."""
        numbers = [bisect.bisect_right(self._starts, start) - 1 for start, _ in spans]
        self._fill(sorted({number for number, (_, memory) in zip(numbers, spans, strict=True) if len(memory)}))
        for number, (start, memory) in zip(numbers, spans, strict=True):
            if len(memory):
                first = start - self._starts[number]
                memory[:] = memory_of(self._filled[number].untyped_storage())[first : first + len(memory)]
                self.advance(len(memory))
        return [zlib_ng.crc32(memory) for _, memory in spans] if crc32 else []

    def _fill(self, numbers: list[int]) -> None:
        self._filled = {number: tensor for number, tensor in self._filled.items() if number in numbers}
        made = {number: self._empty(self._entries[number]) for number in numbers if number not in self._filled}
        parts = [whole.wanted(self._folder, self._metadata, self._entries[n], tensor) for n, tensor in made.items()]
        read_tensors(self._folder, [each for of_tensor in parts for each in of_tensor])
        self._filled |= made

    def _empty(self, entry: whole.Entry) -> torch.Tensor:
        return whole.empty(self._folder, self._metadata, entry)
