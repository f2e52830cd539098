"""Finds all damage in a checkpoint, not only the first: compares the records of a file with their checksums."""

from __future__ import annotations

import functools
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from fsspec_csx.errors import InvalidCheckpointError, UnsafeCheckpointError
from fsspec_csx.formats import placeholders, sniff
from fsspec_csx.formats.damage import CHECKSUM, damage_of
from fsspec_csx.formats.reader import structure
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import zip_directory
from fsspec_csx.formats.torch_zip.zip_directory import LOCAL, STORED, ZipEntry
from fsspec_csx.tensors import names
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source, memory_of
from fsspec_csx.tensors.staging import read_ahead


@dataclass
class Report:
    """The result of a check.

    Attributes:
        records: how many records match their checksums.
        unchecked: how many records have no checksum.
        damage: sentences without a full stop.
        notes: what could not be checked, and why.
        checksum: of the whole, if it is one file.
    """

    records: int = 0
    unchecked: int = 0
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checksum: int = 0

    @property
    def note(self) -> str:
        """The notes as one sentence; empty if there are none."""
        return "; ".join(self.notes)

    def add(self, report: Report, part: str) -> None:
        """Add the report of a part; its name is empty if it is the whole."""
        prefix = f"{part}: " if part else ""
        self.records += report.records
        self.unchecked += report.unchecked
        self.damage += [prefix + each for each in report.damage]
        self.notes += [prefix + each for each in report.notes]


def examine(
    source: Source, *, name: str, compute: Sum, misfit: Callable[[LazyObject], str] = lambda found: ""
) -> Report:
    """Read all of a checkpoint, and look for damage. ``misfit`` describes a mismatch with the expected content."""
    found, flaw, note = _structure(source, name)
    entries, end = torch_archive.records(source) or ([], 0)
    beyond = _beyond(entries, end)
    wrong, lost, checksum = scan(source, [] if beyond else entries, compute)
    damage = [flaw] if flaw and not (wrong and CHECKSUM in flaw) else []
    damage += [difference] if found and (difference := misfit(found)) else []
    damage += [f"{_called(entry, found)} reaches beyond the zip directory" for entry in beyond]
    damage += [f"the local header of {_called(entry, found)} is wrong" for entry in lost]
    damage += [f"the checksum of {_called(entry, found)} is wrong" for entry in wrong]
    checked = sum(map(is_checked, entries))
    unchecked = len(entries) - checked if entries else _tensors(found)
    notes = [note] if note else []
    if not found and not checked:  # no check succeeded
        damage, notes = damage + notes, []
    return Report(checked, unchecked, damage, notes, checksum)


def _structure(source: Source, name: str) -> tuple[LazyObject | None, str, str]:
    """Return the structure of a file if it can be read, its damage, and the reason why it was not read."""
    legacy = sniff.is_legacy(source.head(sniff.HEAD))
    note = "it is of the format before torch 1.6, which has no checksums" if legacy else ""
    try:
        with torch.no_grad():
            found = structure(source, name, bounded=True)
            if unknown := placeholders.found_in(found.obj):
                what = f"{names.shown(list(unknown))} of {placeholders.classes(unknown)}"
                note = f"it has {what}, which could run code when loaded, and so was not loaded"
            return found, "", note
    except UnsafeCheckpointError as error:
        return None, "", f"{damage_of(error, name)}, and so was not loaded"
    except InvalidCheckpointError as error:
        return None, damage_of(error, name), ""


def _beyond(entries: Iterable[ZipEntry], end: int) -> list[ZipEntry]:
    """Return the records that end beyond the directory's start; all records, if together they claim more bytes."""
    listed = list(entries)
    if sum(entry.compressed for entry in listed) > end:
        return listed
    return [entry for entry in listed if entry.header + LOCAL.size + len(entry.name) + entry.compressed > end]


def _called(entry: ZipEntry, found: LazyObject | None) -> str:
    """Return the tensors that a record belongs to, or its own name."""
    own = f"record {entry.name.decode(errors='replace')!r}"
    if found is None:
        return own
    for record in found.records:
        if record.name.encode(errors="replace") == entry.name:
            owners = names.of_records(found.obj, [record])
            return own if owners in (record.name, "''") else f"{owners} ({own})"
    return own


def _tensors(found: LazyObject | None) -> int:
    return sum(isinstance(value, torch.Tensor) for _, value in names.walk(found.obj)) if found else 0


_PIECE = 32 * 2**20
_DEFLATED = 8
_INFLATED = 2**20  # bytes at a time

Sum = Callable[[memoryview, int], int]
"""Computes a checksum of bytes, given the checksum of the bytes before them."""


def scan(source: Source, entries: Sequence[ZipEntry], compute: Sum) -> tuple[list[ZipEntry], list[ZipEntry], int]:
    """Read a file, with at most 64 MiB in memory; ``entries`` are the records if it is an archive.

    Returns:
        The records with a wrong checksum, those with a wrong local header, and the checksum of the whole file.
    """
    waiting = deque(sorted(entries, key=lambda entry: entry.header))
    # Each piece also includes the header of a record that begins at its end.
    margin = max((LOCAL.size + len(entry.name) for entry in entries), default=0)
    under_way: list[_Record] = []
    wrong: list[ZipEntry] = []
    lost: list[ZipEntry] = []
    total = 0
    with read_ahead(_pieces(source, margin)) as pieces:
        for start, memory in pieces:
            piece = memory[:_PIECE]
            while waiting and waiting[0].header < start + len(piece):
                entry = waiting.popleft()
                offset = _offset(memory[entry.header - start :], entry)
                if offset is None:
                    lost.append(entry)
                else:
                    under_way.append(_Record(entry, offset))
            for record in under_way:
                record.add(start, piece)
            end = start + len(piece)
            wrong += [record.entry for record in under_way if record.end <= end and record.is_wrong()]
            under_way = [record for record in under_way if record.end > end]
            total = compute(piece, total)
    return wrong + [record.entry for record in under_way], lost, total


def is_checked(entry: ZipEntry) -> bool:
    """Return whether a record has a checksum that can be compared."""
    return bool(entry.crc32 or not entry.size) and entry.method in (STORED, _DEFLATED)


def _pieces(source: Source, margin: int) -> Iterator[Callable[[], tuple[int, memoryview]]]:
    """Yield a function for each piece, which reads it and returns its position, and its bytes with some that follow."""
    size, count = min(source.size, _PIECE + margin), 1 if source.size <= _PIECE else 2
    memories = [memory_of(torch.empty(size, dtype=torch.uint8).untyped_storage()) for _ in range(count)]

    def read(number: int) -> tuple[int, memoryview]:
        start = number * _PIECE
        memory = memories[number % 2][: source.size - start]
        source.read([(start, memory)])
        return start, memory

    return (functools.partial(read, number) for number in range(-(-source.size // _PIECE)))


def _offset(memory: memoryview, entry: ZipEntry) -> int | None:
    """Return where the bytes of a record begin, by its local header; None if the header belongs to another record."""
    offset = zip_directory.data_offset(bytes(memory[: LOCAL.size]), entry)
    named = bytes(memory[LOCAL.size : LOCAL.size + len(entry.name)])
    return offset if named == entry.name else None


class _Record:
    """Checks a record while its bytes are read, up to ``end``."""

    def __init__(self, entry: ZipEntry, offset: int) -> None:
        self.entry = entry
        self.end = offset + entry.compressed
        self._start = offset
        self._crc = RunningCrc32()
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == _DEFLATED else None
        self._broken = False

    def add(self, start: int, memory: memoryview) -> None:
        """Add those of its bytes that are in ``memory``, which begins at ``start``."""
        first, last = max(self._start - start, 0), self.end - start
        data = memory[first : max(first, last)]
        if self._inflater is None:
            self._crc.add(data)
        elif data and not self._broken:
            try:
                self._inflate(data)
            except zlib.error:
                self._broken = True

    def _inflate(self, data: memoryview) -> None:
        assert self._inflater is not None
        rest: memoryview | bytes = data
        while rest and self._crc.size <= self.entry.size:
            self._crc.add(self._inflater.decompress(rest, _INFLATED))
            rest = self._inflater.unconsumed_tail

    def is_wrong(self) -> bool:
        """Return whether its size or its checksum is wrong."""
        return is_checked(self.entry) and (
            self._broken or (self._crc.size, self._crc.value) != (self.entry.size, self.entry.crc32)
        )
