"""Fills storages and other memory from a file, through staging memory of a bounded size where there is no way around.

What has a checksum is checked whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from zlib_ng import zlib_ng

from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.source import Source, memory_of

PIECE = 16 * 2**20
"""How many bytes a transfer that is staged has at most."""

_STAGING = 48 * 2**20
_ALIGNMENT = 64


@dataclass(frozen=True)
class Transfer:
    """Bytes of a record that go somewhere.

    Attributes:
        record: whose bytes they are.
        start: of the first, in bytes from the start of the record.
        size: how many they are; at most ``PIECE`` unless ``memory`` is given.
        memory: where they go; None if they are staged.
        deliver: takes them where they were staged, as a tensor of bytes on the CPU, which is used again afterwards; if
            None, they are needed for the checksum alone.
    """

    record: Record
    start: int
    size: int
    memory: memoryview | None = None
    deliver: Callable[[torch.Tensor], object] | None = None


def fill(source: Source, records: Sequence[Record]) -> list[Record]:
    """Fill the storages of records.

    Returns:
        The records whose bytes do not have the checksum that they must have.

    Raises:
        OSError: what the file raised, or that it ended early.
    """
    # Apart from what goes to other devices, as there may be thousands.
    here = [record for record in records if record.storage.device.type == "cpu"]
    checked = any(record.crc32 is not None for record in here)
    crcs = source.read([(record.offset, memory_of(record.storage)) for record in here], crc32=checked)
    damaged = [record for record, crc in zip(here, crcs, strict=False) if record.crc32 not in (None, crc)]
    there = [record for record in records if record.storage.device.type != "cpu"]
    # Pinned memory goes to a GPU without another copy on the way.
    pinned = any(record.storage.device.type == "cuda" for record in there)
    return damaged + run(source, [transfer for record in there for transfer in _transfers(record)], pinned=pinned)


def _transfers(record: Record) -> Iterator[Transfer]:
    """Those to the storage of another device."""
    target = torch.empty(0, dtype=torch.uint8, device=record.storage.device).set_(record.storage)
    for start in range(0, len(target), PIECE):
        part = target[start : start + PIECE]
        yield Transfer(record, start, len(part), deliver=part.copy_)


def run(source: Source, transfers: Sequence[Transfer], *, pinned: bool = False) -> list[Record]:
    """Do transfers, with what else must be read for the checksums of their records.

    Args:
        source: the file.
        transfers: in any order. The memories of those that are not staged do not overlap.
        pinned: whether the staging memory is to be such that a CUDA device reads it by itself.

    Returns:
        The records whose bytes do not have the checksum that they must have.

    Raises:
        OSError: what the file raised, or that it ended early.
    """
    groups: dict[int, list[Transfer]] = {}
    for transfer in transfers:
        groups.setdefault(id(transfer.record), []).append(transfer)
    whole, parts = [], []
    for group in groups.values():
        record = group[0].record
        if len(group) == 1 and group[0].memory is not None and group[0].size == record.storage.nbytes():
            whole.append(group[0])
        else:
            parts.append((record, group))
    spans = [(each.record.offset, each.memory) for each in whole if each.memory is not None]
    crcs = source.read(spans, crc32=any(each.record.crc32 is not None for each in whole))
    damaged = [each.record for each, crc in zip(whole, crcs, strict=False) if each.record.crc32 not in (None, crc)]
    parts.sort(key=lambda part: part[0].offset)
    return damaged + (_run_parts(source, parts, pinned) if parts else [])


def _run_parts(source: Source, parts: Sequence[tuple[Record, list[Transfer]]], pinned: bool) -> list[Record]:
    ordered = [transfer for record, group in parts for transfer in _without_gaps(record, group)]
    staged = sum(_aligned(each.size) for each in ordered if each.memory is None)
    staging = torch.empty(min(max(staged, 1), _STAGING), dtype=torch.uint8, device="cpu", pin_memory=pinned)
    sums = {id(record): _Sum(record) for record, _ in parts}
    for batch in _batches(ordered):
        places = list(_places(batch, staging))
        memory = memory_of(staging.untyped_storage())
        spans = [
            (each.record.offset + each.start, memory[place : place + each.size] if each.memory is None else each.memory)
            for each, place in zip(batch, places, strict=True)
        ]
        source.read(spans)
        for each, place, (_, view) in zip(batch, places, spans, strict=True):
            sums[id(each.record)].add(each.start, view)
            if each.deliver is not None:
                each.deliver(staging[place : place + each.size])
    return [each.record for each in sums.values() if each.is_wrong()]


def _without_gaps(record: Record, group: list[Transfer]) -> Iterator[Transfer]:
    """The transfers of a record in order, and between them those of the rest, if it has a checksum."""
    position = 0
    for transfer in sorted(group, key=lambda each: each.start):
        if record.crc32 is not None:
            yield from _unused(record, position, transfer.start)
        yield transfer
        position = max(position, transfer.start + transfer.size)
    if record.crc32 is not None:
        yield from _unused(record, position, record.storage.nbytes())


def _unused(record: Record, start: int, end: int) -> Iterator[Transfer]:
    for position in range(start, end, PIECE):
        yield Transfer(record, position, min(PIECE, end - position))


def _batches(transfers: Iterable[Transfer]) -> Iterator[list[Transfer]]:
    """As many at a time as the staging memory takes."""
    batch: list[Transfer] = []
    taken = 0
    for transfer in transfers:
        size = 0 if transfer.memory is not None else _aligned(transfer.size)
        if taken + size > _STAGING:
            yield batch
            batch, taken = [], 0
        batch.append(transfer)
        taken += size
    yield batch


def _places(batch: Iterable[Transfer], staging: torch.Tensor) -> Iterator[int]:
    """Where in the staging memory each transfer goes, in bytes."""
    place = 0
    for transfer in batch:
        yield place
        place += 0 if transfer.memory is not None else _aligned(transfer.size)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


class _Sum:
    """The CRC-32 of a record whose bytes come in parts, in order, some of them more than once."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._crc = 0
        self._position = 0

    def add(self, start: int, memory: memoryview) -> None:
        """Take in the bytes that begin at a position."""
        new = memory[max(0, self._position - start) :]
        if self.record.crc32 is not None and new:
            self._crc = zlib_ng.crc32(new, self._crc)
            self._position = start + len(memory)

    def is_wrong(self) -> bool:
        """Whether the record is not what it must be."""
        return self.record.crc32 not in (None, self._crc)
