"""Reads a complete checkpoint, and compares it with every checksum that it has."""

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
    """The result of a verification."""

    path: str  # the path of the checkpoint, without any password
    size: int  # the bytes read: the whole file, or of a folder all that a manifest or metadata names
    records: int  # the number of parts of the file that were compared with their checksums
    unchecked: int  # the number of parts without a checksum; in a safetensors file, all tensors
    object_checked: bool  # whether the file was compared with the server's checksum of it
    damage: tuple[str, ...]  # all damage, each a sentence without a full stop; empty if there is none
    note: str  # what could not be checked, and why; empty if all was checked


def verify(
    path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None, callback: Callback | None = None
) -> VerifyResult:
    """Read a checkpoint completely and look for damage, without running its code.

    It compares the checksum of each record of a torch file or a shard, the checksums in a Cerebras checkpoint, and the
    checksum of the object if the server has one. It also checks the structure: the zip directory, the pickle and
    whether tensors fit their records, the header of a safetensors file, and the manifest. A file that is not a
    checkpoint, and an unfinished Cerebras checkpoint, count as damaged. The pickles in a Cerebras checkpoint are not
    checked.

    At most 64 MiB of a file are in memory. But torch reads files of its format before 1.6, and files with quantized or
    nested tensors, completely.
    """
    place = Location.of(path, storage_options)
    with report_progress(callback, place.text) as progress, contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(place.source())
        except CheckpointError as error:
            from fsspec_csx.formats.damage import damage_of  # only here, as it imports torch

            return VerifyResult(place.display_path, 0, 0, 0, False, (damage_of(error, place.display_path),), "")
        return _verified(source, place.display_path, progress)


def _verified(source: Source, name: str, progress: Callback) -> VerifyResult:
    from fsspec_csx.formats import registry  # only here, as it imports torch

    checksum = source.file.object_checksum() if hasattr(source.file, "object_checksum") else None
    compute = checksum[0].compute if checksum else lambda memory, before: 0
    found = registry.format_of(source).verify(source, name, progress, compute)
    damage = list(found.damage)
    if checksum and checksum[0].encoded(found.checksum) != checksum[1]:
        what = f"{checksum[0].encoded(found.checksum)}, and the server has {checksum[1]}"
        damage.append(f"the checksum of all that was read is {what}")
    return VerifyResult(
        name, source.stored, found.records, found.unchecked, checksum is not None, tuple(damage), found.note
    )
