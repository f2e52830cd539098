"""Reads a whole checkpoint, and compares it with every checksum that it has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsspec.callbacks import Callback

from fsspec_csx.errors import CheckpointError
from fsspec_csx.manage.location import Location
from fsspec_csx.storage.progress import report_progress

if TYPE_CHECKING:
    from fsspec_csx.tensors.source import Source


@dataclass(frozen=True)
class VerifyResult:
    """What was found."""

    path: str  # where the checkpoint is, without any password
    size: int  # that of the file in bytes, all of which were read; of a folder, of what a manifest or metadata names
    records: int  # how many parts of the file were compared with their checksums
    unchecked: int  # how many have none; of a safetensors file, all of its tensors
    object_checked: bool  # whether the file was compared with the server's checksum of it
    damage: tuple[str, ...]  # all that is wrong, each a sentence without a full stop; empty if nothing is
    note: str  # what could not be checked, and why; empty if there is nothing


def verify(
    path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None, callback: Callback | None = None
) -> VerifyResult:
    """Read all of a checkpoint and look for damage, without running any code of it.

    Compared are the checksum of each record of a torch file or a shard, those that a Cerebras checkpoint was saved
    with, and that of the object if the server has one. The structure is checked too: the zip directory, the pickle and
    whether tensors fit their records, or the header of a safetensors file, and what a manifest says. A file that is no
    checkpoint counts as damaged, and so does a Cerebras checkpoint that was not finished. The pickles in one are not
    looked into.

    64 MiB of the file are in memory at most, whatever its size; but torch reads those of its format before 1.6, and of
    quantized and nested tensors, whole.
    """
    place = Location.of(path, storage_options)
    with report_progress(callback, place.text) as progress, contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(place.source())
        except CheckpointError as error:
            from fsspec_csx.formats.verify_report import damage_of  # only here, as it imports torch

            return VerifyResult(place.display_path, 0, 0, 0, False, (damage_of(error, place.display_path),), "")
        return _verified(source, place.display_path, progress)


def _verified(source: Source, name: str, progress: Callback) -> VerifyResult:
    from fsspec_csx.formats import registry  # only here, as it imports torch

    checksum = source.file.object_checksum() if hasattr(source.file, "object_checksum") else None
    compute = checksum[0].compute if checksum else lambda memory, before: 0
    found = registry.of(source).verify(source, name, progress, compute)
    damage = list(found.damage)
    if checksum and checksum[0].encoded(found.checksum) != checksum[1]:
        what = f"{checksum[0].encoded(found.checksum)}, and the server has {checksum[1]}"
        damage.append(f"the checksum of all that was read is {what}")
    return VerifyResult(
        name, source.stored, found.records, found.unchecked, checksum is not None, tuple(damage), found.note
    )
