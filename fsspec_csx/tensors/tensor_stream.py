"""TensorStream: reads tensors of one file in batches, checks and casts them, and yields them in pieces for another."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fsspec_csx.tensors import fill, tiling
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.fill import RecordPart
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.source import Source
from fsspec_csx.tensors.staging import Staging, aligned, batches, read_ahead
from fsspec_csx.tensors.tiling import memories

_PIECE = 8 * 2**20
_BATCH = 32 * 2**20


@dataclass(frozen=True, eq=False)
class StreamedTensor:
    """A tensor to write element by element.

    Attributes:
        tensor: strided, on the CPU. With a record its memory is not touched; its strides only give positions.
        dtype: the dtype to cast its elements to.
        record: the record of the tensor's storage; None if its bytes are in memory.
    """

    tensor: torch.Tensor
    dtype: torch.dtype
    record: Record | None = None

    @property
    def nbytes(self) -> int:
        """The number of bytes to write."""
        return self.tensor.numel() * self.dtype.itemsize


class _Chunk(NamedTuple):
    """A part of a streamed tensor, which is read in one piece.

    Attributes:
        start: the position of its bytes in the record.
        size: its size in bytes; 0 without a record.
        in_order: whether the consecutive chunks of the tensor form a record with a checksum.
    """

    whole: StreamedTensor
    part: torch.Tensor
    start: int
    size: int
    last: bool
    in_order: bool


class TensorStream:
    """The bytes of tensors, in the order in which they are written.

    A tensor with interleaved rows in the file, such as a transposed one, is held in memory while it is written. Of
    other tensors at most 80 MiB are in memory. A thread reads ahead.

    Args:
        tensors: empty ones are skipped.
        damaged: returns the error for a record with a wrong checksum.

    Attributes:
        overflowed: tensors so far in which the cast made finite numbers infinite.
    """

    def __init__(
        self, source: Source, tensors: Iterable[StreamedTensor], damaged: Callable[[Record], Exception]
    ) -> None:
        self._source = source
        self._tensors = [each for each in tensors if each.nbytes]
        self._damaged = damaged
        self._checked: set[int] = set()  # positions of records
        self.overflowed: list[StreamedTensor] = []

    @contextlib.contextmanager
    def reading(self) -> Iterator[Iterator[Iterator[memoryview]]]:
        """Yield the pieces of each tensor that is not empty. Each piece is valid until the next is requested."""
        staging = Staging(_BATCH), Staging(_BATCH)
        parts = (chunk for each in self._tensors for chunk in _chunks(each))
        grouped = batches(parts, lambda chunk: aligned(chunk.size + 1), _BATCH)
        reads = (functools.partial(self._read, batch, staging[at % 2]) for at, batch in enumerate(grouped))
        with read_ahead(reads) as read:
            chunks = self._delivered(read)
            yield (_of_one_tensor(chunks) for _ in self._tensors)

    def _read(self, batch: Sequence[_Chunk], staging: Staging) -> list[tuple[_Chunk, torch.Tensor, int]]:
        """Read chunks; return them with their bytes and CRC-32s."""
        self._check_parts(batch, staging)
        slots = staging.slots(chunk.size for chunk in batch)
        crcs = self._source.read(
            [(_position(chunk), memory) for chunk, (_, memory) in zip(batch, slots, strict=True)],
            crc32=any(chunk.in_order for chunk in batch),
        )
        data = [each for each, _ in slots]
        return list(zip(batch, data, crcs or [0] * len(batch), strict=True))

    def _delivered(
        self, read: Iterable[Sequence[tuple[_Chunk, torch.Tensor, int]]]
    ) -> Iterator[tuple[bool, Iterator[memoryview]]]:
        """Yield for each chunk whether it is the last of its tensor, and its pieces."""
        crc = RunningCrc32()
        cast = torch.empty(_PIECE, dtype=torch.uint8, device="cpu")
        for batch in read:
            for chunk, data, own in batch:
                record = chunk.whole.record
                if chunk.in_order and record is not None:
                    crc = crc if chunk.start else RunningCrc32()
                    crc.join(own, chunk.size)
                    if chunk.last and record.differs(crc.value):
                        raise self._damaged(record)
                yield chunk.last, self._pieces(chunk, data, cast)

    def _pieces(self, chunk: _Chunk, read: torch.Tensor, memory: torch.Tensor) -> Iterator[memoryview]:
        whole = chunk.whole

        def look(piece: torch.Tensor, cast: torch.Tensor) -> None:
            if narrows and whole not in self.overflowed and _overflows(piece, cast):
                self.overflowed.append(whole)

        old, new = whole.tensor.dtype, whole.dtype
        narrows = new != old and torch.finfo(new).max < torch.finfo(old).max
        part = chunk.part if whole.record is None else tiling.on_bytes(chunk.part, read)
        return memories(part, new, memory, look)

    def _check_parts(self, batch: Sequence[_Chunk], staging: Staging) -> None:
        """Read and verify the whole records of partly used tensors, each once."""
        records = {
            record.offset: record
            for chunk in batch
            if not chunk.in_order and (record := chunk.whole.record) and record.crc32 is not None
        }
        new = [RecordPart(record, 0, 0) for at, record in records.items() if at not in self._checked]
        if wrong := fill.run(self._source, new, staging=staging):
            raise self._damaged(wrong[0])
        self._checked.update(records)


def _position(chunk: _Chunk) -> int:
    return chunk.whole.record.offset + chunk.start if chunk.whole.record else 0


def _overflows(tensor: torch.Tensor, cast: torch.Tensor) -> bool:
    """Return whether the cast made finite numbers infinite."""
    least, most = cast.aminmax()  # fast; NaN if any element is NaN
    if math.isfinite(least) and math.isfinite(most):
        return False
    return not tensor.isinf().equal(cast.isinf())


def _of_one_tensor(chunks: Iterator[tuple[bool, Iterator[memoryview]]]) -> Iterator[memoryview]:
    for last, pieces in chunks:
        yield from pieces
        if last:
            return


def _chunks(whole: StreamedTensor) -> Iterator[_Chunk]:
    tensor, record = whole.tensor, whole.record
    if record is None:
        yield _Chunk(whole, tensor, 0, 0, last=True, in_order=False)
        return
    whole_record = tensor.is_contiguous() and tensor.nbytes == record.storage.nbytes()
    in_order = record.crc32 is not None and whole_record and not tensor.storage_offset()
    last: _Chunk | None = None
    for (part,) in tiling.pieces(tensor, fits=_is_compact):
        if last is not None:
            yield last
        start = int(part.storage_offset()) * part.element_size()
        last = _Chunk(whole, part, start, tiling.extent(part), last=False, in_order=in_order)
    if last is not None:
        yield last._replace(last=True)


def _is_compact(part: torch.Tensor) -> bool:
    """Return whether a part has few bytes, or interleaved rows, so that its first row already needs all of it."""
    if tiling.extent(part) <= _PIECE:
        return True
    dim = tiling.first_dim(part)
    step = part.stride(dim) * part.element_size()
    return 0 < step < tiling.extent(part.select(dim, 0))
