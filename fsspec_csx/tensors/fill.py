"""Fills storages and other memory from a file, through bounded staging memory where needed.

Records with a checksum are read whole and checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fsspec_csx.tensors import tiling
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.lazy_object import Record
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
