"""Tensors of one file on their way into another: read in batches, checked, cast, and handed on in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from zlib_ng import zlib_ng

from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.contiguous import compact, extent, memories
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.source import Source, memory_of

_PIECE = 8 * 2**20
_BATCH = 32 * 2**20
_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class StreamedTensor:
    """A tensor whose elements are to be written, in their order.

    Attributes:
        tensor: strided, on the CPU. With a record its memory stays untouched, and only says what goes where.
        dtype: what its elements are cast to.
        record: holds the bytes of the tensor's storage; None if they are in memory.
    """

    tensor: torch.Tensor
    dtype: torch.dtype
    record: Record | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes will be written."""
        return self.tensor.numel() * self.dtype.itemsize


class _Chunk(NamedTuple):
    """A part of a run that is read at once.

    Attributes:
        run: whose part it is.
        part: of the run's tensor.
        start: where its bytes begin in the record.
        size: how many there are; 0 if there is no record.
        last: whether it is the last of its run.
        whole: whether all chunks of its run, one after the other, are the record.
    """

    run: StreamedTensor
    part: torch.Tensor
    start: int
    size: int
    last: bool
    whole: bool


class TensorStream:
    """The bytes of tensors, in the order in which they are to be written.

    A tensor whose rows lie between each other in the file, as those of a transposed one, is held in memory while it is
    written; of others there are never more than 48 MiB.

    Args:
        source: the file that they come from.
        runs: the tensors; those without elements are passed over.
        damaged: the error to raise for a record whose bytes do not have their checksum.

    Attributes:
        overflowed: those of the runs, so far, with finite numbers that became infinite.
    """

    def __init__(self, source: Source, runs: Iterable[StreamedTensor], damaged: Callable[[Record], Exception]) -> None:
        self._source = source
        self._runs = [run for run in runs if run.nbytes]
        self._damaged = damaged
        self._staging = torch.empty(_BATCH, dtype=torch.uint8, device="cpu")
        self._cast = torch.empty(_PIECE, dtype=torch.uint8, device="cpu")
        self._checked: set[int] = set()  # positions of records
        self.overflowed: list[StreamedTensor] = []

    def __iter__(self) -> Iterator[Iterator[memoryview]]:
        """The pieces of each run that has any. They must be used up before the next run's, each before the next one.

        Raises:
            Exception: what ``damaged`` made, while a run's pieces are taken; or what the file raised.
        """
        chunks = self._read()
        for _ in self._runs:
            yield _of_one_run(chunks)

    def _read(self) -> Iterator[tuple[bool, Iterator[memoryview]]]:
        """Whether a chunk is the last of its run, and its pieces."""
        crc = 0
        for batch in _batches(chunk for run in self._runs for chunk in _chunks(run)):
            self._check_parts(batch)
            staged, crcs = self._staged(batch)
            for chunk, memory, read in zip(batch, staged, crcs, strict=True):
                record = chunk.run.record
                if chunk.whole and record is not None:
                    crc = zlib_ng.crc32_combine(crc, read, chunk.size) if chunk.start else read
                    if chunk.last and record.crc32 not in (None, crc):
                        raise self._damaged(record)
                yield chunk.last, self._pieces(chunk, memory)

    def _pieces(self, chunk: _Chunk, staged: torch.Tensor) -> Iterator[memoryview]:
        run = chunk.run

        def look(piece: torch.Tensor, cast: torch.Tensor) -> None:
            if narrows and run not in self.overflowed and _overflows(piece, cast):
                self.overflowed.append(run)

        narrows = run.dtype != run.tensor.dtype and torch.finfo(run.dtype).max < torch.finfo(run.tensor.dtype).max
        return memories(_placed(chunk, staged), run.dtype, self._cast, look)

    def _staged(self, batch: Sequence[_Chunk]) -> tuple[list[torch.Tensor], list[int]]:
        """The bytes of each chunk, and their CRC-32."""
        sizes = [-(-chunk.size // _ALIGNMENT) * _ALIGNMENT for chunk in batch]
        total = sum(sizes)
        staging = self._staging if total <= _BATCH else torch.empty(total, dtype=torch.uint8, device="cpu")
        memory = memory_of(staging.untyped_storage())
        staged, spans, place = [], [], 0
        for chunk, size in zip(batch, sizes, strict=True):
            staged.append(staging[place : place + chunk.size])
            position = chunk.run.record.offset + chunk.start if chunk.run.record else 0
            spans.append((position, memory[place : place + chunk.size]))
            place += size
        return staged, self._source.read(spans, crc32=True)

    def _check_parts(self, batch: Iterable[_Chunk]) -> None:
        """Read over the records of which only parts are used, each once."""
        for chunk in batch:
            record = chunk.run.record
            if chunk.whole or record is None or record.crc32 is None or record.offset in self._checked:
                continue
            size, crc = record.storage.nbytes(), 0
            memory = memory_of(self._staging.untyped_storage())
            for start in range(0, size, _BATCH):
                span = memory[: min(_BATCH, size - start)]
                (read,) = self._source.read([(record.offset + start, span)], crc32=True)
                crc = zlib_ng.crc32_combine(crc, read, len(span)) if start else read
            if crc != record.crc32:
                raise self._damaged(record)
            self._checked.add(record.offset)


def _overflows(tensor: torch.Tensor, cast: torch.Tensor) -> bool:
    """Whether casting made some finite numbers infinite."""
    least, most = cast.aminmax()  # fast; NaN where there is one
    if math.isfinite(least) and math.isfinite(most):
        return False
    return not tensor.isinf().equal(cast.isinf())


def _of_one_run(chunks: Iterator[tuple[bool, Iterator[memoryview]]]) -> Iterator[memoryview]:
    for last, pieces in chunks:
        yield from pieces
        if last:
            return


def _chunks(run: StreamedTensor) -> Iterator[_Chunk]:
    tensor, record = run.tensor, run.record
    if record is None:
        yield _Chunk(run, tensor, 0, 0, last=True, whole=False)
        return
    begins = not tensor.storage_offset()
    whole = begins and tensor.is_contiguous() and tensor.nbytes == record.storage.nbytes()
    parts = compact(tensor, _PIECE)
    part: torch.Tensor | None = next(parts)
    while part is not None:
        following = next(parts, None)
        start = int(part.storage_offset()) * part.element_size()
        yield _Chunk(run, part, start, extent(part), last=following is None, whole=whole)
        part = following


def _batches(chunks: Iterable[_Chunk]) -> Iterator[list[_Chunk]]:
    """As many at a time as the staging memory takes, or a single one that is larger."""
    batch: list[_Chunk] = []
    taken = 0
    for chunk in chunks:
        size = chunk.size + _ALIGNMENT
        if batch and taken + size > _BATCH:
            yield batch
            batch, taken = [], 0
        batch.append(chunk)
        taken += size
    yield batch


def _placed(chunk: _Chunk, staged: torch.Tensor) -> torch.Tensor:
    """The part of the run's tensor on the bytes that were read."""
    part = chunk.part
    if chunk.run.record is None:
        return part
    placed = staged.view(part.dtype).as_strided(part.shape, part.stride())
    placed = placed.conj() if part.is_conj() else placed
    return torch_compat.neg_view(placed) if part.is_neg() else placed
