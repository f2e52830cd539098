"""Pairs of tensors of two files, read at the same time in pieces, and compared while the next ones are read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fsspec_csx.tensors import fill, numeric_error, tiling
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.numeric_error import Closeness, NumericError
from fsspec_csx.tensors.source import Source
from fsspec_csx.tensors.staging import Staging, aligned, batches
from fsspec_csx.tensors.tiling import ByteRuns

_PIECE = 16 * 2**20
_STAGING = 32 * 2**20  # of each file; twice, as one is read while the other is compared
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
        pair: its number.
        parts: of its tensors.
        runs: what is read for each part.
        checked: on which sides the parts of the pair are the bytes of a record with a checksum, all of them in order.
        last: whether it is the last part.
    """

    pair: int
    parts: tuple[torch.Tensor, torch.Tensor]
    runs: tuple[ByteRuns, ByteRuns]
    checked: tuple[bool, bool]
    last: bool

    def nbytes(self, side: int) -> int:
        """How many bytes are read of one of the files."""
        return self.runs[side].total * self.parts[side].element_size()


class _Read(NamedTuple):
    """What was read of a batch of jobs: the bytes of each in the staging memory, and their CRC-32."""

    data: list[torch.Tensor]
    crcs: list[int]


def compare(files: tuple[File, File], pairs: Sequence[ComparedPair], closeness: Closeness) -> None:
    """Find how far the tensors of each pair, which ``numeric_error.can_compare`` accepts, are apart.

    Of each file at most 64 MiB are in memory. All that is read is compared with its checksum.
    """
    with contextlib.ExitStack() as stack, torch.no_grad():
        # One thread for each file: the position of a local file is that of all its readers.
        readers = [stack.enter_context(ThreadPoolExecutor(1)) for _ in files]
        merged = [tiling.merged(*(stored.tensor for stored in pair.sides)) for pair in pairs]
        _check_parts(files, pairs, merged, readers)
        _Comparing(files, pairs, merged, closeness, readers).run()


def _check_parts(
    files: tuple[File, File],
    pairs: Sequence[ComparedPair],
    merged: Sequence[tuple[torch.Tensor, torch.Tensor]],
    readers: Sequence[ThreadPoolExecutor],
) -> None:
    """Read over the records that no pair takes whole and in order."""
    found: tuple[dict[int, Record], dict[int, Record]] = ({}, {})
    for pair, tensors in zip(pairs, merged, strict=True):
        for records, stored, tensor in zip(found, pair.sides, tensors, strict=True):
            record = stored.record if tensor.numel() else None
            if record is not None and record.crc32 is not None and not _is_checked(stored, tensor):
                records[record.offset] = record
    waiting = [
        reader.submit(fill.run, file.source, [fill.Transfer(record, 0, 0) for record in records.values()])
        for reader, file, records in zip(readers, files, found, strict=True)
    ]
    for file, future in zip(files, waiting, strict=True):
        if wrong := future.result():
            raise file.damaged(wrong)


class _Comparing:
    """One run of ``compare``."""

    def __init__(
        self,
        files: tuple[File, File],
        pairs: Sequence[ComparedPair],
        merged: Sequence[tuple[torch.Tensor, torch.Tensor]],
        closeness: Closeness,
        readers: Sequence[ThreadPoolExecutor],
    ) -> None:
        self._files = files
        self._pairs = pairs
        self._merged = merged
        self._closeness = closeness
        self._readers = readers
        self._crcs = [RunningCrc32(), RunningCrc32()]

    def run(self) -> None:
        before: tuple[list[_Job], list[Future[_Read]]] | None = None
        staging: list[list[Staging]] = []
        for number, batch in enumerate(batches(self._jobs(), self._needed, _STAGING, count=_JOBS_MAX)):
            if len(staging) < 2:
                staging.append([Staging(_STAGING) for _ in self._files])
            memories = staging[number % 2]
            reading = [
                reader.submit(self._read, side, batch, memories[side]) for side, reader in enumerate(self._readers)
            ]
            if before is not None:
                self._compare(*before)
            before = batch, reading
        if before is not None:
            self._compare(*before)

    def _needed(self, job: _Job) -> int:
        """How many bytes of staging memory a job takes of the file of which it takes more."""
        sides = self._pairs[job.pair].sides
        return max(aligned(job.nbytes(side)) if stored.record else 0 for side, stored in enumerate(sides))

    def _read(self, side: int, batch: Sequence[_Job], staging: Staging) -> _Read:
        records = [self._pairs[job.pair].sides[side].record for job in batch]
        slots = staging.slots(job.nbytes(side) if record else 0 for job, record in zip(batch, records, strict=True))
        spans: list[tuple[int, memoryview]] = []
        numbers: list[int] = []
        for job, record, (_, memory) in zip(batch, records, slots, strict=True):
            numbers.append(len(spans))
            part, runs = job.parts[side], job.runs[side]
            width, done = part.element_size(), 0
            if record is None:
                continue
            for start in runs.starts(int(part.storage_offset())):
                spans.append((record.offset + start * width, memory[done : done + runs.length * width]))
                done += runs.length * width
        crcs = self._files[side].source.read(spans, crc32=any(job.checked[side] for job in batch))
        return _Read([data for data, _ in slots], [crcs[each] if each < len(crcs) else 0 for each in numbers])

    def _compare(self, batch: Sequence[_Job], reading: Sequence[Future[_Read]]) -> None:
        read = [future.result() for future in reading]
        for number, job in enumerate(batch):
            pair = self._pairs[job.pair]
            parts = []
            for side, stored in enumerate(pair.sides):
                if job.checked[side]:
                    self._check(side, job, read[side].crcs[number])
                part, strides = job.parts[side], job.runs[side].strides
                parts.append(tiling.on_bytes(part, read[side].data[number], strides) if stored.record else part)
            numeric_error.compare(parts[0], parts[1], self._closeness, pair.found)

    def _check(self, side: int, job: _Job, crc: int) -> None:
        """Take the checksum of a part in, and if it is the last compare that of the record."""
        record = self._pairs[job.pair].sides[side].record
        if not job.parts[side].storage_offset():
            self._crcs[side] = RunningCrc32()
        self._crcs[side].join(crc, job.nbytes(side))
        if job.last and record is not None and record.differs(self._crcs[side].value):
            raise self._files[side].damaged([record])

    def _jobs(self) -> Iterator[_Job]:
        for number, (pair, (first, second)) in enumerate(zip(self._pairs, self._merged, strict=True)):
            if not first.numel():
                continue
            checked = _is_checked(pair.sides[0], first), _is_checked(pair.sides[1], second)
            last: _Job | None = None
            for one, other in tiling.pieces(first, second, fits=_is_piece, dim=tiling.longest_dim):
                if last is not None:
                    yield last
                runs = tiling.byte_runs(one), tiling.byte_runs(other)
                last = _Job(number, (one, other), runs, checked, last=False)
            if last is not None:
                yield last._replace(last=True)


def _is_piece(*parts: torch.Tensor) -> bool:
    return all(tiling.byte_runs(part).total * part.element_size() <= _PIECE for part in parts)


def _is_checked(stored: StoredTensor, merged: torch.Tensor) -> bool:
    """Whether a tensor, part by part of what it was merged to, is a record with a checksum."""
    record = stored.record
    if record is None or record.crc32 is None or merged.dim() > 1 or not merged.is_contiguous():
        return False
    return merged.nbytes == record.storage.nbytes()
