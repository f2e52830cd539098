"""Fills storages and other memory from a file, through bounded staging memory where needed.

Records with a checksum are read whole and checked.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fsspec_csx.errors import DtypeCastWarning
from fsspec_csx.tensors import tiling
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.match import MatchedPair
from fsspec_csx.tensors.names import place_of
from fsspec_csx.tensors.source import Source, memory_at, memory_of
from fsspec_csx.tensors.staging import Staging, aligned, batches

PIECE = 16 * 2**20
"""The most bytes of a staged transfer."""

_STAGING = 48 * 2**20


@dataclass(frozen=True)
class RecordPart:
    """Bytes of a record, and where they go.

    Attributes:
        start: the position of the first byte in the record.
        size: the number of bytes; at most ``PIECE`` unless ``memory`` is given.
        memory: the memory to fill; None if the bytes are staged.
        deliver: takes the staged bytes, as a CPU tensor that is reused; None if only the checksum needs them.
    """

    record: Record
    start: int
    size: int
    memory: memoryview | None = None
    deliver: Callable[[torch.Tensor], object] | None = None

    @property
    def staged(self) -> int:
        """The staging memory that it takes, in bytes."""
        return 0 if self.memory is not None else aligned(self.size)


def fill(source: Source, records: Sequence[Record]) -> list[Record]:
    """Fill the storages of records; return the records with a wrong checksum."""
    # A separate path for the CPU, where there may be thousands of records.
    here = [record for record in records if record.storage.device.type == "cpu"]
    there = [record for record in records if record.storage.device.type != "cpu"]
    damaged = _read(source, here, [memory_of(record.storage) for record in here])
    # Pinned memory goes to a GPU without another copy.
    pinned = any(record.storage.device.type == "cuda" for record in there)
    return damaged + run(source, [transfer for record in there for transfer in _transfers(record)], pinned=pinned)


def _read(source: Source, records: Sequence[Record], memories: Sequence[memoryview]) -> list[Record]:
    """Read records whole; return those with a wrong checksum."""
    spans = [(record.offset, memory) for record, memory in zip(records, memories, strict=True)]
    crcs = source.read(spans, crc32=any(record.crc32 is not None for record in records))
    return [record for record, crc in zip(records, crcs, strict=False) if record.differs(crc)]


def _transfers(record: Record) -> Iterator[RecordPart]:
    """Yield the transfers to a storage on another device."""
    target = torch.empty(0, dtype=torch.uint8, device=record.storage.device).set_(record.storage)
    for start in range(0, len(target), PIECE):
        part = target[start : start + PIECE]
        yield RecordPart(record, start, len(part), deliver=part.copy_)


def direct(record: Record, source: torch.Tensor, target: torch.Tensor) -> RecordPart | None:
    """Return a transfer that reads a tensor directly into the target; None if their bytes differ in order or dtype.

    The record has the bytes of the storage of ``source``, whose memory is untouched. Elements of ``target`` are apart.
    """
    if not _same_bytes(source, target):
        return None
    address, size = target.data_ptr(), source.nbytes
    return RecordPart(record, _start(source), size, memory=memory_at(address, size, target))


def copies(
    record: Record,
    source: torch.Tensor,
    target: torch.Tensor,
    copy: Callable[[torch.Tensor, torch.Tensor], object],
) -> Iterator[RecordPart]:
    """Yield transfers that copy a tensor of a file to another through staging memory; see ``direct``."""

    def fits(part: torch.Tensor, _: torch.Tensor) -> bool:
        size = tiling.extent(part)
        # Gaps are read only if the checksum needs them, or they are small.
        dense = record.crc32 is not None or size <= 2 * part.nbytes or not tiling.has_gaps(part)
        return size <= PIECE and dense

    for part, place in tiling.pieces(source, target, fits=fits, dim=tiling.widest_dim):

        def deliver(data: torch.Tensor, part: torch.Tensor = part, place: torch.Tensor = place) -> None:
            copy(tiling.on_bytes(part, data), place)

        yield RecordPart(record, _start(part), tiling.extent(part), deliver=deliver)


def _start(tensor: torch.Tensor) -> int:
    """Return the position of a tensor in its storage, in bytes."""
    return int(tensor.storage_offset()) * tensor.element_size()


def _same_bytes(source: torch.Tensor, target: torch.Tensor) -> bool:
    """Return whether two tensors have the same bytes in the same order."""
    plain = type(target) in (torch.Tensor, torch.nn.Parameter) and place_of(target) is not None
    if not plain or target.device.type != "cpu" or target.dtype != source.dtype:
        return False
    if target.is_conj() or target.is_neg():
        return False
    if source.is_contiguous() and target.is_contiguous():
        return True
    return source.stride() == target.stride() and tiling.extent(source) == source.nbytes


def run(
    source: Source, transfers: Sequence[RecordPart], *, pinned: bool = False, staging: Staging | None = None
) -> list[Record]:
    """Run transfers, and read what else the checksums of their records need.

    Args:
        transfers: in any order. The memory of those that are not staged must not overlap.
        pinned: whether to pin the staging memory, so that a CUDA device can read it directly.
        staging: memory to use instead.

    Returns:
        The records with a wrong checksum.
    """
    groups: dict[int, list[RecordPart]] = {}
    for transfer in transfers:
        groups.setdefault(id(transfer.record), []).append(transfer)
    whole, memories, parts = [], [], []
    for group in groups.values():
        record, memory = group[0].record, group[0].memory
        if len(group) == 1 and memory is not None and group[0].size == record.storage.nbytes():
            whole.append(record)
            memories.append(memory)
        else:
            parts.append((record, group))
    damaged = _read(source, whole, memories)
    parts.sort(key=lambda part: part[0].offset)
    return damaged + (_run_parts(source, parts, pinned, staging) if parts else [])


def _run_parts(
    source: Source, parts: Sequence[tuple[Record, list[RecordPart]]], pinned: bool, staging: Staging | None
) -> list[Record]:
    ordered = [transfer for record, group in parts for transfer in _without_gaps(record, group)]
    if staging is None:
        staging = Staging(min(sum(each.staged for each in ordered), _STAGING), pinned=pinned)
    sums = {id(record): RunningCrc32() for record, _ in parts if record.crc32 is not None}
    for batch in batches(ordered, lambda each: each.staged, staging.size):
        slots = staging.slots(0 if each.memory is not None else each.size for each in batch)
        memories = [
            memory if each.memory is None else each.memory for each, (_, memory) in zip(batch, slots, strict=True)
        ]
        source.read([(each.record.offset + each.start, memory) for each, memory in zip(batch, memories, strict=True)])
        for each, memory, (data, _) in zip(batch, memories, slots, strict=True):
            if crc := sums.get(id(each.record)):  # a part may be read more than once
                crc.add(memory[max(0, crc.size - each.start) :])
            if each.deliver is not None:
                each.deliver(data)
    return [record for record, _ in parts if id(record) in sums and record.differs(sums[id(record)].value)]


def _without_gaps(record: Record, group: list[RecordPart]) -> Iterator[RecordPart]:
    """Yield the transfers of a record in order, and between them the rest of it if it has a checksum."""
    position = 0
    for transfer in sorted(group, key=lambda each: (each.start, each.size)):
        yield from _unused(record, position, transfer.start)
        yield transfer
        position = max(position, transfer.start + transfer.size)
    yield from _unused(record, position, record.storage.nbytes())


def _unused(record: Record, start: int, end: int) -> Iterator[RecordPart]:
    if record.crc32 is not None:
        for position in range(start, end, PIECE):
            yield RecordPart(record, position, min(PIECE, end - position))


_STACK = 4  # from the warning to the caller of load


class Casts:
    """Counts casts of tensors by dtypes, and measures their time."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[torch.dtype, torch.dtype]] = Counter()
        self._seconds = 0.0

    def count(self, pair: MatchedPair) -> None:
        """Count a pair, once."""
        if pair.source.dtype != pair.target.dtype:
            self._counts[pair.source.dtype, pair.target.dtype] += 1

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        started = time.perf_counter()
        target.copy_(source)
        if source.dtype != target.dtype:
            self._seconds += time.perf_counter() - started

    def warn(self) -> None:
        """Issue a ``DtypeCastWarning`` if tensors were cast."""
        if not self._counts:
            return
        kinds = ", ".join(f"{count} from {old} to {new}" for (old, new), count in self._counts.items())
        what = f"Tensors were cast while they were loaded ({kinds}), which took {self._seconds:.2g} s."
        warnings.warn(f"{what} Save them in the dtype in which they are used.", DtypeCastWarning, stacklevel=_STACK)


def fill_into(source: Source, found: LazyObject, pairs: Iterable[MatchedPair], casts: Casts) -> list[Record]:
    """Fill tensors from those of a lazy object, which itself stays unfilled; ``casts`` counts the casts.

    Return the records with a wrong checksum.
    """
    records = {record.place: record for record in found.records}
    straight: dict[tuple[int, int, int], tuple[RecordPart, MatchedPair]] = {}
    staged: list[RecordPart] = []
    filled: list[MatchedPair] = []
    pinned = False
    with torch.no_grad():
        for pair in pairs:
            casts.count(pair)
            place = place_of(pair.source)
            record = None if place is None else records.get(place)
            if record is None or not pair.source.numel():
                filled.append(pair)
            elif pair.source.is_conj() or pair.source.is_neg():
                staged.append(RecordPart(record, 0, record.storage.nbytes(), memory_of(record.storage)))
                filled.append(pair)
            elif transfer := direct(record, *pair):
                straight[pair.target.data_ptr(), transfer.size, record.offset + transfer.start] = transfer, pair
            else:
                pinned |= pair.target.device.type == "cuda"
                staged += copies(record, *pair, casts.copy)
        whole, meeting = _apart(straight)
        for transfer, pair in meeting:
            staged += copies(transfer.record, *pair, casts.copy)
        damaged = run(source, whole + staged, pinned=pinned)
        for pair in filled:
            casts.copy(pair.source, pair.target)
    return damaged


def _apart(
    straight: dict[tuple[int, int, int], tuple[RecordPart, MatchedPair]],
) -> tuple[list[RecordPart], list[tuple[RecordPart, MatchedPair]]]:
    """Return the transfers whose memory overlaps no other, and the rest, which must run one after the other."""
    alone: list[RecordPart] = []
    meeting: list[tuple[RecordPart, MatchedPair]] = []
    end = 0
    for (address, size, _), entry in sorted(straight.items(), key=lambda item: item[0]):
        if address >= end:
            alone.append(entry[0])
        else:
            meeting.append(entry)
        end = max(end, address + size)
    return alone, meeting
