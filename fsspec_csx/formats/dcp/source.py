"""ShardedSource: presents a sharded checkpoint as one source of bytes, in which each tensor is contiguous."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator
from typing import IO

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.boxes import Box, boxes_of
from fsspec_csx.formats.dcp.full_state_dict import ManifestEntry, ShardedStateDict, entries_of, replaced
from fsspec_csx.formats.dcp.layout import MANIFEST, ShardedFolder
from fsspec_csx.formats.dcp.manifest import ItemLocation, plain_of
from fsspec_csx.formats.dcp.reader import TensorRead, read_tensors
from fsspec_csx.tensors.crc32 import RunningCrc32, crc32_of
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.source import Source, Spans

_MOST = 64


class FileCache(ShardedFolder):
    """A folder that keeps the most recently read files open until ``close``."""

    def __init__(self, folder: ShardedFolder) -> None:
        super().__init__(folder.fs, folder.path, folder.name)
        self._kept: dict[str, IO[bytes]] = {}

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for one user at a time."""
        file = self._kept.pop(name, None) or self.open(name)
        try:
            yield file
        except BaseException:
            file.close()
            raise
        if other := self._kept.pop(name, None):
            other.close()
        self._kept[name] = file
        while len(self._kept) > _MOST:
            self._close(next(iter(self._kept)))

    def close(self) -> None:
        """Close all files."""
        for name in [*self._kept]:
            self._close(name)

    def _close(self, name: str) -> None:
        if file := self._kept.pop(name, None):
            file.close()


class ShardedSource(Source):
    """A sharded checkpoint. A span to read must not cross the end of a tensor.

    Attributes:
        folder: the folder; its files stay open until ``close``.
        state: the state dict.
        size: the size of all tensors in bytes.
    """

    format = "distributed"

    def __init__(self, folder: ShardedFolder) -> None:
        super().__init__(None, 0)  # there is no single file to read the ends of
        self.folder = FileCache(folder)
        self.metadata = manifest.read(folder)
        self.state = ShardedStateDict(self.folder, self.metadata)
        self._entries = entries_of(self.state.nested)
        self._tensors = [entry for entry in self._entries if entry.tensor and entry.info.nbytes]
        *self._starts, self.size = itertools.accumulate((entry.info.nbytes for entry in self._tensors), initial=0)

    @property
    def files(self) -> set[str]:
        """The names of the manifest and of the files that it names."""
        return {MANIFEST, *(place.relative_path for place in self.metadata.storage_data.values())}

    @property
    def stored(self) -> int:
        """The size of its items in bytes, each counted once."""
        return self.state.stored

    def close(self) -> None:
        self.folder.close()

    def structure(self, *, weights_only: bool = True, partial: bool = False) -> LazyObject:
        """Return the structure. The system allocates a tensor's memory only when it is written."""
        tensors = {entry.name: self.state.empty(entry) for entry in self._entries if entry.tensor}
        records = [
            Record(entry.name, start, tensors[entry.name].untyped_storage(), self._crc32(entry))
            for start, entry in zip(self._starts, self._tensors, strict=True)
        ]
        values = self.state.values(self._entries, weights_only=weights_only, partial=partial)
        return LazyObject(replaced(self.state.nested, {**tensors, **values}), records)

    def read(self, spans: Spans, *, crc32: bool = False) -> list[int]:
        """Fill spans, which begin and end at elements of tensors."""
        wanted = [each for start, memory in spans if memory for each in self._wanted(start, memory)]
        read_tensors(self.folder, wanted, advance=self.advance)
        return [crc32_of(memory) for _, memory in spans] if crc32 else []

    def _wanted(self, start: int, memory: memoryview) -> Iterator[TensorRead]:
        """Yield the parts of chunks that make up a span of a tensor."""
        number = bisect.bisect_right(self._starts, start) - 1
        entry = self._tensors[number]
        target = torch.frombuffer(memory, dtype=torch.uint8).view(entry.info.dtype)
        first = (start - self._starts[number]) // target.itemsize
        done = 0
        for box in boxes_of(entry.info.shape, first, first + target.numel()):
            part = target[done : done + box.count].view(box.lengths)
            done += box.count
            for chunk, item in self.state.chunks(entry):
                yield from _of_chunk(entry.name, chunk, item, box, part)

    def _crc32(self, entry: ManifestEntry) -> int | None:
        """Return the CRC-32 of a tensor, if the manifest has those of its chunks, and the chunks are in row order."""
        shape, dtype = entry.info.shape, entry.info.dtype
        crc, rows = RunningCrc32(), 0
        for chunk, item in sorted(self.state.chunks(entry), key=lambda each: tuple(each[0].offsets)):
            plain = plain_of(item)
            if plain is None or plain.crc32 is None or (plain.dtype, plain.shape) != (dtype, tuple(chunk.sizes)):
                return None
            if shape and not (chunk.offsets[0] == rows and tuple(chunk.sizes[1:]) == shape[1:]):
                return None
            rows += chunk.sizes[0] if shape else 0
            crc.join(plain.crc32, plain.nbytes)
        return crc.value


def _of_chunk(
    name: str, chunk: ChunkStorageMetadata, item: ItemLocation, box: Box, part: torch.Tensor
) -> Iterator[TensorRead]:
    """Yield the part of a chunk that lies in a box of its tensor."""
    begins = []
    for dimension, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
        own = box.start[dimension]
        begin, end = max(own, offset), min(own + box.lengths[dimension], offset + size)
        if begin >= end:
            return
        part = part.narrow(dimension, begin - own, end - begin)
        begins.append(begin - offset)
    yield TensorRead(name, item, tuple(begins), part)
