"""A sharded checkpoint as one source of bytes: each tensor has a place in it, wherever its parts lie."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from zlib_ng import zlib_ng

from fsspec_csx.formats.checkpoint_info import CheckpointInfo
from fsspec_csx.formats.composite_source import CompositeSource
from fsspec_csx.formats.dcp import full_state_dict, manifest
from fsspec_csx.formats.dcp.boxes import Box, boxes_of
from fsspec_csx.formats.dcp.file_cache import FileCache
from fsspec_csx.formats.dcp.folder import MANIFEST, Folder
from fsspec_csx.formats.dcp.full_state_dict import ManifestEntry
from fsspec_csx.formats.dcp.manifest import plain_of
from fsspec_csx.formats.dcp.reader import TensorRead, read_tensors
from fsspec_csx.tensors import names
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.names import Keys
from fsspec_csx.tensors.source import Spans


class ShardedSource(CompositeSource):
    """A sharded checkpoint.

    Args:
        folder: where it lies.

    Attributes:
        folder: the same, its files open until ``close``.
        metadata: its manifest.
        size: the bytes of all tensors.

    Raises:
        CheckpointError: if the manifest is not what it should be.
        OSError: what the filesystem raised; FileNotFoundError is among it.
    """

    format = "distributed"

    def __init__(self, folder: Folder) -> None:
        # Not as of Source: there is no one file whose ends are to be read.
        self.file = None
        self.folder = FileCache(folder)
        self.advance: Callable[[int], object] = lambda count: None
        self.metadata = manifest.read(folder)
        self._state = full_state_dict.nested(self.metadata)
        self._entries = [entry for _, entry in names.walk(self._state) if isinstance(entry, ManifestEntry)]
        self._starts: list[int] = []
        self._tensors: list[ManifestEntry] = []
        end = 0
        for entry in self._entries:
            if entry.tensor is not None and (size := _nbytes(entry)):
                self._starts.append(end)
                self._tensors.append(entry)
                end += size
        self.size = end

    @property
    def kept(self) -> int:
        """How many bytes are kept."""
        return 0

    @property
    def files(self) -> set[str]:
        """The names of the manifest and of the files that it names."""
        return {MANIFEST, *(place.relative_path for place in self.metadata.storage_data.values())}

    @property
    def stored(self) -> int:
        """How many bytes its items take, each counted once."""
        places = self.metadata.storage_data.values()
        return sum({(place.relative_path, place.offset): place.length for place in places}.values())

    def close(self) -> None:
        """Close the files that were read."""
        self.folder.close()

    def load(self, *, keys: Keys | None, map_location: Any, weights_only: bool) -> Any:
        """See ``CompositeSource``."""
        return full_state_dict.read(
            self.folder,
            self.metadata,
            keys=keys,
            map_location=map_location,
            weights_only=weights_only,
            advance=self.advance,
        )

    def structure(self, *, weights_only: bool = True, partial: bool = False) -> LazyObject:
        """See ``CompositeSource``; the memory of the tensors takes none before it is written to."""
        tensors = {
            entry.name: full_state_dict.empty(self.folder, self.metadata, entry)
            for entry in self._entries
            if entry.tensor
        }
        records = [
            Record(entry.name, start, tensors[entry.name].untyped_storage(), self._crc32(entry))
            for start, entry in zip(self._starts, self._tensors, strict=True)
        ]
        values = full_state_dict.values(
            self.folder, self.metadata, self._entries, weights_only=weights_only, partial=partial
        )
        return LazyObject(full_state_dict.replaced(self._state, {**tensors, **values}), records)

    def info(self) -> CheckpointInfo:
        """See ``CompositeSource``."""
        return full_state_dict.describe(self.folder, self.metadata)

    def read(self, spans: Spans, *, crc32: bool = False) -> list[int]:
        """See ``Source``; spans begin and end with elements of tensors."""
        wanted = [each for start, memory in spans if memory for each in self._wanted(start, memory)]
        read_tensors(self.folder, wanted, advance=self.advance)
        return [zlib_ng.crc32(memory) for _, memory in spans] if crc32 else []

    def _wanted(self, start: int, memory: memoryview) -> Iterator[TensorRead]:
        """The parts of chunks that a span of a tensor consists of."""
        number = bisect.bisect_right(self._starts, start) - 1
        entry = self._tensors[number]
        assert entry.tensor is not None
        target = torch.frombuffer(memory, dtype=torch.uint8).view(entry.tensor.properties.dtype)
        first = (start - self._starts[number]) // target.itemsize
        done = 0
        for box in boxes_of(tuple(entry.tensor.size), first, first + target.numel()):
            part = target[done : done + box.count].view(box.lengths)
            done += box.count
            for chunk in entry.tensor.chunks:
                yield from self._of_chunk(entry, chunk, box, part)

    def _of_chunk(
        self, entry: ManifestEntry, chunk: ChunkStorageMetadata, box: Box, part: torch.Tensor
    ) -> Iterator[TensorRead]:
        """What a chunk has of a box of its tensor."""
        begins = []
        for dimension, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            own = box.start[dimension]
            begin, end = max(own, offset), min(own + box.lengths[dimension], offset + size)
            if begin >= end:
                return
            part = part.narrow(dimension, begin - own, end - begin)
            begins.append(begin - offset)
        place = full_state_dict.stored(self.folder, self.metadata, MetadataIndex(entry.name, chunk.offsets))
        yield TensorRead(entry.name, place, tuple(begins), part)

    def _crc32(self, entry: ManifestEntry) -> int | None:
        """That of a tensor's bytes, where the manifest tells those of its parts, and these follow each other."""
        assert entry.tensor is not None
        shape, dtype = tuple(entry.tensor.size), entry.tensor.properties.dtype
        crc, rows = 0, 0
        for chunk in sorted(entry.tensor.chunks, key=lambda each: tuple(each.offsets)):
            plain = plain_of(
                full_state_dict.stored(self.folder, self.metadata, MetadataIndex(entry.name, chunk.offsets))
            )
            if plain is None or plain.crc32 is None or (plain.dtype, plain.shape) != (dtype, tuple(chunk.sizes)):
                return None
            if shape and not (chunk.offsets[0] == rows and _has_rows(chunk, shape)):
                return None
            rows += chunk.sizes[0] if shape else 0
            crc = zlib_ng.crc32_combine(crc, plain.crc32, plain.nbytes)
        return crc


def _has_rows(chunk: ChunkStorageMetadata, shape: Sequence[int]) -> bool:
    """Whether a chunk is cut in the first dimension alone."""
    return tuple(chunk.sizes[1:]) == tuple(shape[1:])


def _nbytes(entry: ManifestEntry) -> int:
    assert entry.tensor is not None
    return entry.tensor.size.numel() * entry.tensor.properties.dtype.itemsize
