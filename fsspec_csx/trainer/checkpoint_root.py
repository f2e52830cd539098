"""The folder of a run's checkpoints, at any fsspec URL. Names are taken literally, but for ``matching``."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable

from fsspec_csx.formats.cerebras.writer import check_place
from fsspec_csx.manage import cerebras_folders, naming
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.location import Location, expand_pattern
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.paths import redacted


def join(root: str, name: str) -> str:
    """The path of a file in a folder."""
    return Directory(root).path_of(name)


def list_names(root: str) -> list[str]:
    """The names of the files and folders in a folder; empty if there is no such folder."""
    try:
        files, folders = Directory(root).scan()
    except FileNotFoundError:
        return []
    return [*(file.name for file in files), *(folder.rstrip("/") for folder in folders)]


def matching(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The paths, with those that match a pattern in its place, sorted by the numbers in them.

    A FileNotFoundError if nothing matches a pattern.
    """
    found: list[str] = []
    for each in paths:
        matches = expand_pattern(each) or [os.fspath(each)]
        found += sorted(matches, key=lambda path: [*map(int, re.findall(r"\d+", path))])
    return found


def exists(path: str, *, sharded: bool, format: str | None = None) -> bool:
    """Whether the path of a new checkpoint of this form is taken; by an interrupted save of the same form it is not."""
    place = Location.of(path, None)
    if not place.exists():
        return False
    if not (sharded or format) or not place.is_folder():
        return True
    files, folders = Directory(path).scan()
    if format and any(file.name == naming.METADATA for file in files):
        return cerebras_folders.is_complete(Directory(path), "")
    return bool(folders or format) or not all(
        naming.is_shard(file.name) or naming.is_temporary(file.name) for file in files
    )


def delete(path: str) -> None:
    """Delete a checkpoint, if it exists; an OSError is one of the filesystem."""
    try:
        to_delete = manage_delete.targets([path])
    except FileNotFoundError:
        return
    for error in manage_delete.delete(to_delete).values():
        raise error


def check_writable(root: str, format: str | None = None) -> None:
    """Write a small file to a folder, creating it if necessary, and delete the file.

    Raises:
        ValueError: if the folder cannot hold the format.
        OSError: an error of the filesystem; a PermissionError without permission or credentials.
    """
    if format:
        check_place(Directory(root).fs, redacted(root))
    probe = Location.below(Directory(root), f".writable.{secrets.token_hex(8)}.tmp")
    with atomic_write(probe.fs, probe.path) as file:
        file.write(b"writable")
    probe.remove()
