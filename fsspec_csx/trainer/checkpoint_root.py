"""The folder of a run's checkpoints at any fsspec URL, and their names. Only ``matching`` accepts patterns."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from string import Formatter

from fsspec_csx.formats.cerebras.writer import check_place
from fsspec_csx.manage import contents
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.location import Location, expand_pattern
from fsspec_csx.storage.atomic import atomic_write, is_temporary
from fsspec_csx.storage.paths import redacted

_TIMESTAMP = "%Y%m%d_%H%M%S"


class CheckpointNames:
    """Names from a template; a time follows the step if a name was taken. Without ``{step}`` it is a ValueError."""

    def __init__(self, template: str) -> None:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
        if fields != ["step"] or "/" in template:
            msg = f"{template!r} cannot name checkpoints: it must have {{step}} in it once, and no slash. "
            raise ValueError(msg + "Give a name such as 'checkpoint_{step}.mdl'.")
        self._template = template
        before, after = (re.escape(part.format()) for part in template.split("{step}"))
        self._pattern = re.compile(rf"{before}(?P<step>\d+)(?:_(?P<time>\d{{8}}_\d{{6}}))?{after}")

    def of(self, step: int, *, taken: bool = False) -> str:
        """Return the name for a step, with the time appended if the name is taken."""
        return self._template.format(step=f"{step}_{datetime.now():{_TIMESTAMP}}" if taken else step)

    def order(self, name: str) -> tuple[int, str, str]:
        """Return a sort key, which begins with the step and the time in a name; the step is below 0 for other names."""
        match = self._pattern.fullmatch(name)
        return (int(match["step"]), match["time"] or "", name) if match else (-1, "", name)

    def in_order(self, names: Iterable[str]) -> list[tuple[int, str, str]]:
        """Return the sort keys of the names of checkpoints, the newest last; other names are left out."""
        return sorted(key for key in map(self.order, names) if key[0] >= 0)


def join(root: str, name: str) -> str:
    return Directory(root).path_of(name)


def list_names(root: str) -> list[str]:
    """Return the names of the files and folders in a folder; none if the folder does not exist."""
    try:
        files, folders = Directory(root).scan()
    except FileNotFoundError:
        return []
    return [*(file.name for file in files), *(folder.rstrip("/") for folder in folders)]


def matching(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Replace patterns by the paths that match, sorted by number; a FileNotFoundError if nothing matches."""
    found: list[str] = []
    for each in paths:
        matches = expand_pattern(each) or [os.fspath(each)]
        found += sorted(matches, key=lambda path: [*map(int, re.findall(r"\d+", path))])
    return found


def exists(path: str, *, sharded: bool, format: str | None = None) -> bool:
    """Whether a path for a new checkpoint is taken; the remains of an interrupted save of this form do not count."""
    place = Location.of(path)
    if not place.exists():
        return False
    if not (sharded or format) or not place.is_folder():
        return True
    files, folders = Directory(path).scan()
    layout = contents.listing_layout([file.name for file in files])
    if format and layout:
        return layout.is_finished(Directory(path))
    return bool(folders or format) or not all(contents.is_shard(file.name) or is_temporary(file.name) for file in files)


def delete(path: str) -> None:
    """Delete a checkpoint if it exists; the filesystem may raise an OSError."""
    try:
        to_delete = manage_delete.targets([path])
    except FileNotFoundError:
        return
    for error in manage_delete.delete(to_delete).values():
        raise error


def check_writable(root: str, format: str | None = None) -> None:
    """Write a small file to a folder, creating it if necessary, and delete the file.

    Raises a ValueError if the folder cannot hold the format, a PermissionError without permission or credentials.
    """
    if format:
        check_place(Directory(root).fs, redacted(root))
    probe = Location.below(Directory(root), f".writable.{secrets.token_hex(8)}.tmp")
    with atomic_write(probe.fs, probe.path) as file:
        file.write(b"writable")
    probe.remove()
