"""Finds all damage in a checkpoint, not only the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from fsspec_csx.errors import CheckpointError, InvalidCheckpointError, UnsafeCheckpointError
from fsspec_csx.formats import scan, sniff
from fsspec_csx.formats.reader import structure
from fsspec_csx.formats.scan import Sum
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import placeholders
from fsspec_csx.formats.torch_zip.zip_directory import LOCAL, ZipEntry
from fsspec_csx.tensors import names
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source


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


class _Structure(NamedTuple):
    """The structure of a file if it can be read; else its damage, or the reason why it was not read."""

    found: LazyObject | None = None
    flaw: str = ""
    note: str = ""


def examine(
    source: Source, *, name: str, compute: Sum, misfit: Callable[[LazyObject], str] = lambda found: ""
) -> Report:
    """Read all of a checkpoint, and look for damage. ``misfit`` describes a mismatch with the expected content."""
    shape = _structure(source, name)
    entries, end = torch_archive.records(source) or ([], 0)
    beyond = _beyond(entries, end)
    wrong, lost, checksum = scan.scan(source, [] if beyond else entries, compute)
    damage = [shape.flaw] if shape.flaw and not (wrong and torch_archive.CHECKSUM in shape.flaw) else []
    damage += [flaw] if shape.found and (flaw := misfit(shape.found)) else []
    damage += [f"{_called(entry, shape.found)} reaches beyond the zip directory" for entry in beyond]
    damage += [f"the local header of {_called(entry, shape.found)} is wrong" for entry in lost]
    damage += [f"the checksum of {_called(entry, shape.found)} is wrong" for entry in wrong]
    checked = sum(map(scan.is_checked, entries))
    unchecked = len(entries) - checked if entries else _tensors(shape.found)
    notes = [shape.note] if shape.note else []
    if not shape.found and not checked:  # no check succeeded
        damage, notes = damage + notes, []
    return Report(checked, unchecked, damage, notes, checksum)


def _structure(source: Source, name: str) -> _Structure:
    legacy = sniff.is_legacy(source.head(sniff.HEAD))
    note = "it is of the format before torch 1.6, which has no checksums" if legacy else ""
    try:
        with torch.no_grad():
            found = structure(source, name, bounded=True)
            if unknown := placeholders.found_in(found.obj):
                what = f"{names.shown(list(unknown))} of {placeholders.classes(unknown)}"
                note = f"it has {what}, which could run code when loaded, and so was not loaded"
            return _Structure(found, note=note)
    except UnsafeCheckpointError as error:
        return _Structure(note=f"{damage_of(error, name)}, and so was not loaded")
    except InvalidCheckpointError as error:
        return _Structure(flaw=damage_of(error, name))


def damage_of(error: CheckpointError, name: str) -> str:
    """Return the reason of an error as a sentence without a full stop."""
    reason = error.reason.rstrip(".")
    return f"it{reason.removeprefix(name)}" if reason.startswith(f"{name} ") else reason


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
