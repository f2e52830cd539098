"""Cerebras checkpoints in folders: their objects, whether they are complete, and where they can be copied to."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Any

from fsspec_csx.errors import CheckpointError, CheckpointPathError, DeleteError
from fsspec_csx.formats.cerebras import metadata
from fsspec_csx.manage import naming
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.location import Location
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import open_file
from fsspec_csx.storage.paths import redacted

logger = logging.getLogger("fsspec_csx")

_TAIL = 4096


def is_complete(root: Directory, folder: str) -> bool:
    """Return whether the checkpoint in a folder below a root is complete; True if its metadata may not be read."""
    place = Location.below(root, f"{folder.rstrip('/')}/{naming.METADATA}".lstrip("/"))
    try:
        size = place.state()["size"]
        with place.opened() as file:
            file.seek(max(0, size - _TAIL))
            if metadata.SUCCESS.encode() in file.read(_TAIL):  # a save writes this last
                return True
            file.seek(0)
            if size > metadata.LARGEST:
                return False
            return bool(metadata.decoded(file.read(), name=place.display_path).get(metadata.SUCCESS))
    except (FileNotFoundError, CheckpointError):
        return False
    except PermissionError:
        return True


def own_names(root: Directory, names: Collection[str], *, strict: bool = False) -> list[str]:
    """Return those of the names below a folder that belong to the Cerebras checkpoint in it; none without one."""
    return own_and_unclear_names(root, names, strict=strict)[0]


def own_and_unclear_names(
    root: Directory, names: Collection[str], *, strict: bool = False
) -> tuple[list[str], list[str]]:
    """Return the checkpoint's own names and, if its metadata is damaged, names in folders below that it may own.

    With ``strict``, raises an InvalidCheckpointError if the metadata names objects of checkpoints below, or does not
    name all of its own.
    """
    if naming.METADATA not in names:
        return [], []
    try:
        data = _read(root.fs, root.inner(), metadata.LARGEST + 1)
    except PermissionError:
        if strict:
            raise
        data = None
    return metadata.split_owned(data or b"", names, path=redacted(root.path), strict=strict)


def error_for_remaining_objects(path: str, names: Collection[str]) -> DeleteError:
    """Return the error for a checkpoint that was deleted except for these objects in folders below."""
    reason = f"{redacted(path)} was deleted, but {metadata.unclear_owner(names)}. They are left."
    return DeleteError(reason, "Look at them, and delete those that nobody needs, such as by fsspec's rm_file.")


def warn_of_unclear(target: Directory, names: Collection[str]) -> None:
    """Warn which objects stay below a replaced checkpoint, as its damaged metadata does not name them."""
    if names:
        logger.warning("%s is replaced, and %s. They stay.", redacted(target.path), metadata.unclear_owner(names))


def is_incomplete(root: Directory) -> bool:
    """Return whether ``mark_incomplete`` marked a folder that nothing has completed since."""
    data = _read(root.fs, root.inner(), metadata.LARGEST) or b""
    try:
        return {*metadata.decoded(data, name=root.path)} == {metadata.OWN}
    except CheckpointError:
        return False


def mark_incomplete(fs: Any, folder: str, names: Iterable[str]) -> bytes | None:
    """Mark a folder as an incomplete Cerebras checkpoint with these objects, before it is written or deleted.

    Returns the former metadata; None if there was none.
    """
    former = _read(fs, folder)
    write_metadata(fs, folder, metadata.unfinished(names))
    return former


def _read(fs: Any, folder: str, size: int = -1) -> bytes | None:
    try:
        with open_file(fs, f"{folder}/{naming.METADATA}") as file:
            return file.read(size)
    except FileNotFoundError:
        return None


def write_metadata(fs: Any, folder: str, data: bytes) -> None:
    """Write the metadata object of a checkpoint."""
    with atomic_write(fs, f"{folder}/{naming.METADATA}") as file:
        file.write(data)


def check_target(source: Directory, target: Directory) -> None:
    """Raise a CheckpointPathError if a target cannot hold the user metadata of a checkpoint on S3."""
    if Location.below(source, "x").bulk and not Location.below(target, "x").bulk:
        reason = f"{redacted(target.path)} cannot hold the user metadata of the objects of {redacted(source.path)}."
        raise CheckpointPathError(reason, "Convert it to one file: cszoo checkpoint convert.")


def same_user_metadata(one: Location, other: Location) -> bool:
    """Return whether two objects have the same user metadata; True on filesystems without user metadata."""
    stamps = one.stamp(), other.stamp()
    if stamps[0] is None or stamps[1] is None:
        return True
    return bool(stamps[0].headers.get("Metadata") == stamps[1].headers.get("Metadata"))
