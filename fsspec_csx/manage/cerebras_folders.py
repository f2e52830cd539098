"""Cerebras checkpoints that are folders: whether one was finished, and where a copy of one can be."""

from __future__ import annotations

from typing import Any

from fsspec_csx.errors import CheckpointError, CheckpointPathError
from fsspec_csx.manage import naming
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.location import Location
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.paths import redacted

_TAIL = 4096


def finished(root: Directory, folder: str) -> bool:
    """Whether a folder has a checkpoint that was written to its end; True if that may not be looked at.

    Args:
        root: the folder or one above it.
        folder: its name below the root.

    Raises:
        OSError: what the filesystem raised; no FileNotFoundError.
    """
    place = Location.below(root, f"{folder.rstrip('/')}/{naming.METADATA}")
    from fsspec_csx.formats.cerebras.metadata import LARGEST, SUCCESS, decoded  # only here, as few folders are any

    try:
        size = place.state()["size"]
        with place.opened() as file:
            file.seek(max(0, size - _TAIL))
            if SUCCESS.encode() in file.read(_TAIL):  # it is the last that is written
                return True
            file.seek(0)
            return size <= LARGEST and bool(decoded(file.read(), name=place.display_path).get(SUCCESS))
    except (FileNotFoundError, CheckpointError):
        return False
    except PermissionError:
        return True


def begun(root: Directory) -> bool:
    """Whether a folder is one that ``begin`` made, and nobody finished.

    Raises:
        OSError: what the filesystem raised.
    """
    place = Location.below(root, naming.METADATA)
    try:
        with place.opened() as file:
            return bool(file.read(_TAIL) == _begun())
    except FileNotFoundError:
        return False


def begin(fs: Any, folder: str) -> bytes | None:
    """Make a folder a Cerebras checkpoint that was not finished, whether it is to become one or to go.

    Args:
        fs: the filesystem; None for this machine's own.
        folder: its path there.

    Returns:
        The metadata that there was; None if there was none.

    Raises:
        OSError: what the filesystem raised; PermissionError is among it.
    """
    place = Location(folder, fs, f"{folder}/{naming.METADATA}", (fs, f"{folder}/{naming.METADATA}"))
    try:
        with place.opened() as file:
            former: bytes | None = file.read()
    except FileNotFoundError:
        former = None
    write(fs, folder, _begun())
    return former


def write(fs: Any, folder: str, metadata: bytes) -> None:
    """Write the metadata of a checkpoint.

    Args:
        fs: the filesystem; None for this machine's own.
        folder: its path there.
        metadata: its bytes.
    """
    with atomic_write(fs, f"{folder}/{naming.METADATA}") as file:
        file.write(metadata)


def check_target(source: Directory, target: Directory) -> None:
    """Refuse a target that cannot hold all that a checkpoint on S3 is.

    Raises:
        CheckpointPathError: if it is not on S3.
    """
    if _is_bulk(source.fs) and not _is_bulk(target.fs):
        what = "cannot hold the user metadata of its objects, which a Cerebras checkpoint on S3 needs"
        reason = f"{redacted(source.path)} cannot be copied to {redacted(target.path)}, as that {what}."
        raise CheckpointPathError(reason, "Make one file of it: cszoo checkpoint convert.")


def same_user_metadata(one: Location, other: Location) -> bool:
    """Whether two objects have the same user metadata; True where there is none."""
    stamps = one.stamp(), other.stamp()
    if stamps[0] is None or stamps[1] is None:
        return True
    return bool(stamps[0].headers.get("Metadata") == stamps[1].headers.get("Metadata"))


def _begun() -> bytes:
    """Metadata without the entry that is there when all else is."""
    from fsspec_csx.formats.cerebras.metadata import encoded  # only here, as few folders are any

    return encoded({})


def _is_bulk(fs: Any) -> bool:
    return hasattr(fs, "take_file")
