"""Cerebras checkpoints in folders: whether one is complete, and where one can be copied to."""

from __future__ import annotations

from typing import Any

from fsspec_csx.errors import CheckpointError, CheckpointPathError
from fsspec_csx.manage import naming
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.location import Location
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.paths import redacted

_TAIL = 4096


def is_complete(root: Directory, folder: str) -> bool:
    """Whether the checkpoint in a folder was written completely; True if its metadata may not be read.

    Args:
        root: the folder, or one above it.
        folder: its name below the root.

    Raises:
        OSError: raised by the filesystem, except FileNotFoundError.
    """
    place = Location.below(root, f"{folder.rstrip('/')}/{naming.METADATA}".lstrip("/"))
    from fsspec_csx.formats.cerebras.metadata import LARGEST, SUCCESS, decoded  # imported here, as few folders need it

    try:
        size = place.state()["size"]
        with place.opened() as file:
            file.seek(max(0, size - _TAIL))
            if SUCCESS.encode() in file.read(_TAIL):  # written last
                return True
            file.seek(0)
            return size <= LARGEST and bool(decoded(file.read(), name=place.display_path).get(SUCCESS))
    except (FileNotFoundError, CheckpointError):
        return False
    except PermissionError:
        return True


def is_incomplete(root: Directory) -> bool:
    """Whether ``mark_incomplete`` marked a folder, and nothing completed it since."""
    place = Location.below(root, naming.METADATA)
    try:
        with place.opened() as file:
            return bool(file.read(_TAIL) == _incomplete_metadata())
    except FileNotFoundError:
        return False


def mark_incomplete(fs: Any, folder: str) -> bytes | None:
    """Mark a folder as an incomplete Cerebras checkpoint, before it is written or deleted.

    Args:
        fs: the filesystem; None for the local one.
        folder: its path there.

    Returns:
        The former metadata; None if there was none.

    Raises:
        OSError: raised by the filesystem.
    """
    place = Location(folder, fs, f"{folder}/{naming.METADATA}", (fs, f"{folder}/{naming.METADATA}"))
    try:
        with place.opened() as file:
            former: bytes | None = file.read()
    except FileNotFoundError:
        former = None
    write_metadata(fs, folder, _incomplete_metadata())
    return former


def write_metadata(fs: Any, folder: str, metadata: bytes) -> None:
    """Write the metadata object of a checkpoint."""
    with atomic_write(fs, f"{folder}/{naming.METADATA}") as file:
        file.write(metadata)


def check_target(source: Directory, target: Directory) -> None:
    """Refuse a target that cannot hold the user metadata of a checkpoint on S3.

    Raises:
        CheckpointPathError: if the target is not on S3.
    """
    if _is_bulk(source.fs) and not _is_bulk(target.fs):
        reason = f"{redacted(target.path)} cannot hold the user metadata of the objects of {redacted(source.path)}."
        raise CheckpointPathError(reason, "Convert it to one file: cszoo checkpoint convert.")


def same_user_metadata(one: Location, other: Location) -> bool:
    """Whether two objects have the same user metadata; True on filesystems without."""
    stamps = one.stamp(), other.stamp()
    if stamps[0] is None or stamps[1] is None:
        return True
    return bool(stamps[0].headers.get("Metadata") == stamps[1].headers.get("Metadata"))


def _incomplete_metadata() -> bytes:
    """Metadata without the entry that is written last."""
    from fsspec_csx.formats.cerebras.metadata import encoded  # imported here, as few folders need it

    return encoded({})


def _is_bulk(fs: Any) -> bool:
    return hasattr(fs, "take_file")
