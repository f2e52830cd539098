"""Pairs of tensors of two files, read at the same time in pieces, and compared while the next ones are read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from zlib_ng import zlib_ng

from fsspec_csx.tensors import fill, numeric_error, tiling, torch_compat
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.numeric_error import Closeness, NumericError
from fsspec_csx.tensors.source import Source, memory_of
from fsspec_csx.tensors.tiling import ByteRuns, Tile

_PIECE = 16 * 2**20
_STAGING = 32 * 2**20  # of each file; twice, as one is read while the other is compared
_ALIGNMENT = 64
_JOBS_MAX = 4096


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and its bytes.

    Attributes:
        tensor: strided, on the CPU.
        record: where they lie in the file; None if they are in the tensor's memory.
    """

    tensor: torch.Tensor
    record: Record | None = None

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return self.tensor.element_size()


@dataclass(frozen=True)
class ComparedPair:
    """Two tensors of one shape.

    Attributes:
        sides: the first and the second.
        found: how far they are apart, as far as is known.
    """

    sides: tuple[StoredTensor, StoredTensor]
    found: NumericError = field(default_factory=NumericError)


class File(NamedTuple):
    """One of the two files, and the error to raise for records whose bytes do not have their checksum."""

    source: Source
    damaged: Callable[[Sequence[Record]], Exception]


class _Job(NamedTuple):
    """A part of a pair that is read at once.

    Attributes:
        covered: on which sides the parts of the pair are the bytes of the record, all of them and in order.
    """

    pair: int
    tile: Tile
    runs: tuple[ByteRuns, ByteRuns]
    covered: tuple[bool, bool]
    last: bool


class _Read(NamedTuple):
    """What was read of a batch of jobs: where the bytes of each are in the staging memory, and their CRC-32."""

    places: list[int]
    crcs: list[int]


def compare(files: tuple[File, File], pairs: Sequence[ComparedPair], closeness: Closeness) -> None:
    """Find how far the tensors of each pair are apart.

    Of each file at most 64 MiB are in memory. All that is read is compared with its checksum.

    Args:
        files: that of the first tensors, and that of the second ones.
        pairs: of tensors that can be compared (``deviation.can_compare``).
        closeness: when two elements count as equal.

    Raises:
        Exception: what ``damaged`` of a file made, or what the file raised.
    """
    with contextlib.ExitStack() as stack, torch.no_grad():
        # One thread for each file: the position of a local file is that of all its readers.
        readers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in files]
        _check_parts(files, pairs, readers)
        _Comparing(files, pairs, closeness, readers).run()


def _check_parts(
    files: tuple[File, File], pairs: Sequence[ComparedPair], readers: Sequence[ThreadPoolExecutor]
) -> None:
    """Read over the records that no pair takes whole and in order."""
    found: tuple[dict[int, Record], dict[int, Record]] = ({}, {})
    for pair in pairs:
        tile = _tile(pair)
        for side, stored in enumerate(pair.sides):
            record = stored.record if stored.tensor.numel() else None
            if record is not None and record.crc32 is not None and not _covers(stored, tile, side):
                found[side][record.offset] = record
    waiting = [
        reader.submit(fill.run, file.source, [fill.Transfer(record, 0, 0) for record in records.values()])
        for reader, file, records in zip(readers, files, found, strict=True)
    ]
    for file, future in zip(files, waiting, strict=True):
        if wrong := future.result():
            raise file.damaged(wrong)


def _tile(pair: ComparedPair) -> Tile:
    first, second = (stored.tensor for stored in pair.sides)
    strides = (first.stride(), second.stride())
    return tiling.whole(first.shape, strides, (int(first.storage_offset()), int(second.storage_offset())))


def _covers(stored: StoredTensor, tile: Tile, side: int) -> bool:
    """Whether a tensor, part by part of its tile, is the record."""
    in_order = len(tile.dims) <= 1 and tile.strides(side) in ((), (1,))
    size = stored.tensor.numel() * stored.width
    return in_order and stored.record is not None and size == stored.record.storage.nbytes()


class _Comparing:
    """One run of ``compare``."""

    def __init__(
        self,
        files: tuple[File, File],
        pairs: Sequence[ComparedPair],
        closeness: Closeness,
        readers: Sequence[ThreadPoolExecutor],
    ) -> None:
        self._files = files
        self._pairs = pairs
        self._closeness = closeness
        self._readers = readers
        self._crcs = [0, 0]

    def run(self) -> None:
        batches = _batches(self._pairs)
        before: tuple[list[_Job], int, list[Future[_Read]]] | None = None
        staging: list[list[torch.Tensor]] = []
        for number, batch in enumerate(batches):
            if len(staging) < 2:
                staging.append([torch.empty(_STAGING, dtype=torch.uint8, device="cpu") for _ in self._files])
            memories = staging[number % 2]
            reading = [
                self._readers[side].submit(self._read, side, batch, memories[side]) for side in range(len(self._files))
            ]
            if before is not None:
                self._compare(*before, staging)
            before = batch, number % 2, reading
        if before is not None:
            self._compare(*before, staging)

    def _read(self, side: int, batch: Sequence[_Job], staging: torch.Tensor) -> _Read:
        memory = memory_of(staging.untyped_storage())
        places: list[int] = []
        spans: list[tuple[int, memoryview]] = []
        numbers: list[int] = []
        place = 0
        for job in batch:
            stored, runs = self._pairs[job.pair].sides[side], job.runs[side]
            places.append(place)
            numbers.append(len(spans))
            if stored.record is None:
                continue
            length = runs.length * stored.width
            for start in runs.starts(job.tile.starts[side]):
                spans.append((stored.record.offset + start * stored.width, memory[place : place + length]))
                place += length
            place = _aligned(place)
        crcs = self._files[side].source.read(spans, crc32=any(job.covered[side] for job in batch))
        return _Read(places, [crcs[number] if number < len(crcs) else 0 for number in numbers])

    def _compare(
        self, batch: Sequence[_Job], parity: int, reading: Sequence[Future[_Read]], staging: list[list[torch.Tensor]]
    ) -> None:
        read = [future.result() for future in reading]
        for number, job in enumerate(batch):
            parts = []
            for side, stored in enumerate(self._pairs[job.pair].sides):
                if job.covered[side]:
                    self._check(side, job, read[side].crcs[number])
                parts.append(_part(stored, job, side, staging[parity][side][read[side].places[number] :]))
            numeric_error.compare(parts[0], parts[1], self._closeness, self._pairs[job.pair].found)

    def _check(self, side: int, job: _Job, crc: int) -> None:
        """Take the checksum of a part in, and if it is the last compare that of the record."""
        stored = self._pairs[job.pair].sides[side]
        begins = not job.tile.starts[side]
        length = job.runs[side].total * stored.width
        self._crcs[side] = crc if begins else zlib_ng.crc32_combine(self._crcs[side], crc, length)
        if job.last and stored.record is not None and self._crcs[side] != stored.record.crc32:
            raise self._files[side].damaged([stored.record])


def _part(stored: StoredTensor, job: _Job, side: int, staged: torch.Tensor) -> torch.Tensor:
    """The part of a tensor, on its own memory or on what was read."""
    tensor, tile, runs = stored.tensor, job.tile, job.runs[side]
    if stored.record is None:
        return tensor.as_strided(tile.sizes, tile.strides(side), tile.starts[side])
    part = staged[: runs.total * stored.width].view(tensor.dtype).as_strided(tile.sizes, runs.strides)
    part = part.conj() if tensor.is_conj() else part
    return torch_compat.neg_view(part) if tensor.is_neg() else part


def _jobs(number: int, pair: ComparedPair) -> Iterator[_Job]:
    if not pair.sides[0].tensor.numel():
        return
    whole = _tile(pair)
    widths = (pair.sides[0].width, pair.sides[1].width)
    first, second = pair.sides
    covered = (_is_checked(first, whole, 0), _is_checked(second, whole, 1))
    before = None
    for tile in tiling.cut(whole, widths, _PIECE):
        if before is not None:
            yield before
        runs = (tiling.runs(tile, 0, widths[0]), tiling.runs(tile, 1, widths[1]))
        before = _Job(number, tile, runs, covered, last=False)
    if before is not None:
        yield before._replace(last=True)


def _is_checked(stored: StoredTensor, tile: Tile, side: int) -> bool:
    return stored.record is not None and stored.record.crc32 is not None and _covers(stored, tile, side)


def _batches(pairs: Iterable[ComparedPair]) -> Iterator[list[_Job]]:
    """As many at a time as the staging memory of each file takes."""
    batch: list[_Job] = []
    taken = [0, 0]
    for number, pair in enumerate(pairs):
        for job in _jobs(number, pair):
            sizes = [
                _aligned(job.runs[side].total * stored.width) if stored.record else 0
                for side, stored in enumerate(pair.sides)
            ]
            if batch and (max(taken[0] + sizes[0], taken[1] + sizes[1]) > _STAGING or len(batch) >= _JOBS_MAX):
                yield batch
                batch, taken = [], [0, 0]
            batch.append(job)
            taken = [taken[0] + sizes[0], taken[1] + sizes[1]]
    if batch:
        yield batch


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
