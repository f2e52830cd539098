"""A checkpoint read as a whole and compared with every checksum that there is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsspec.callbacks import Callback

from fsspec_csx.checkpoint import _opened, _size, locate
from fsspec_csx.paths import checkpoint_path, redacted
from fsspec_csx.progress import Meter, reporting


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        path: where the checkpoint is, without any password.
        size: that of the file in bytes, all of which were read.
        records: how many parts of the file were compared with their checksums.
        unchecked: how many have none; of a safetensors file, all of its tensors.
        object_checked: whether the file was compared with a checksum that the server tells of it.
        damage: all that is wrong, each a sentence without a full stop; empty if nothing is.
        note: what could not be looked at, and why; empty if there is no such.
    """

    path: str
    size: int
    records: int
    unchecked: int
    object_checked: bool
    damage: tuple[str, ...]
    note: str


def verify(
    path: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> Verified:
    """Read all of a checkpoint and look for damage, without running any code of it.

    Compared are the checksum of each record of a torch file, and that of the object where the server tells one. The
    structure is looked at too: the zip directory, the pickle and whether tensors fit their records, or the header of a
    safetensors file. A file that is no checkpoint counts as damaged.

    64 MiB of the file are in memory at most, whatever its size; but torch reads those of its format before 1.6, and of
    quantized and nested tensors, whole.

    Args:
        path: a local path or an fsspec URL, as of ``load``.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        callback: as of ``load``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        OSError: whatever the filesystem raised, as it raised it; FileNotFoundError and others are among it.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats import intact  # only here, as it imports torch
    from fsspec_csx.formats.source import Source

    name = redacted(text)
    with reporting(callback, text) as progress, _opened(*locate(path, text, storage_options)) as file:
        told = file.object_checksum() if hasattr(file, "object_checksum") else None
        size = _size(file)
        meter = Meter(progress, size)
        source = Source(file, size, meter.advance)
        found = intact.examine(source, name=name, compute=told[0].compute if told else lambda memory, before: 0)
        damage = list(found.damage)
        if told and told[0].encoded(found.checksum) != told[1]:
            what = f"{told[0].encoded(found.checksum)}, and the server tells {told[1]}"
            damage.append(f"the checksum of all that was read is {what}")
        meter.finish()
    return Verified(name, size, found.records, found.unchecked, told is not None, tuple(damage), found.note)
