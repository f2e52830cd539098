"""The checkpoints below a root, in order."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fsspec_csx.errors import CheckpointError
from fsspec_csx.manage import cerebras_folders, completeness, naming, s3
from fsspec_csx.manage.directory import Directory, File, map_parallel
from fsspec_csx.manage.location import Location, given_path, is_pattern, pattern_matches
from fsspec_csx.manage.steps import steps_of
from fsspec_csx.storage.paths import redacted


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint, as far as a listing tells of it.

    Attributes:
        path: as ``load`` takes it.
        step: that its name says (``manage.naming``), or its epoch; None if it says neither.
        modified: when it was written last; None if the filesystem does not tell.
        size: of all its files, in bytes.
        files: how many it has.
        sharded: whether it is a folder.
    """

    path: str
    step: int | None
    modified: datetime | None
    size: int
    files: int
    sharded: bool


def checkpoints(
    root: str | os.PathLike[str], *, recursive: bool = False, storage_options: Mapping[str, Any] | None = None
) -> list[ListedCheckpoint]:
    """List the checkpoints under a root, the newest last: sorted by step, and within a step by time.

    Those whose names say no step come first, sorted by time; then those that say only an epoch. Names decide what is a
    checkpoint (see ``manage.naming``). Empty files, temporary files and folders without a manifest are none, nor are
    folders that ``load`` does not read. A Cerebras folder is read, to see whether it was finished.

    Args:
        root: a folder, local or an fsspec URL; an S3 URL may name a bucket alone.
        recursive: whether to look below its folders as well.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a folder.
        FileNotFoundError: if there is no such folder; also BucketNotFoundError.
        NotADirectoryError: if it is a file.
        OSError: whatever the filesystem raised, as it raised it.
    """
    place = Directory(root, storage_options)
    folders = place.tree() if recursive else _folders(place)
    found = []
    of_cerebras = {folder: None for folder, files in folders.items() if folder and naming.METADATA in map(_base, files)}
    whole = map_parallel(place.fs, lambda folder: cerebras_folders.finished(place, folder), of_cerebras)
    unfinished = {folder for folder, is_whole in zip(of_cerebras, whole, strict=True) if not is_whole}
    for folder, files in folders.items():
        if folder in unfinished or _is_below(folder, of_cerebras):
            continue
        # The root is no checkpoint below itself.
        if folder and (sharded := _sharded(place, folder, files)):
            found.append(sharded)
        elif recursive or not folder:
            found += _single(place, files)
    return sorted(found, key=order)


def list_matching(
    path: str | os.PathLike[str], *, recursive: bool = False, options: Mapping[str, Any] | None = None
) -> list[ListedCheckpoint]:
    """The checkpoints under a root, or those that a pattern fits, and those under the other folders that it fits.

    Args:
        path: of the root, or a pattern as of ``expanded``.
        recursive: as of ``checkpoints``.
        options: arguments for the filesystem.

    Raises:
        OSError: as of ``checkpoints``; FileNotFoundError if nothing fits.
    """
    place = Location.of(path, options) if is_pattern(path) else None
    matches = pattern_matches(place) if place else None
    if matches is None or place is None:
        return checkpoints(path, recursive=recursive, storage_options=options)
    found: dict[str, ListedCheckpoint] = {}
    names = {given_path(place, name): info["type"] == "directory" for name, info in matches.items()}
    for parent in dict.fromkeys(name.rpartition("/")[0] or "." for name in names):
        found |= {each.path: each for each in checkpoints(parent, storage_options=options) if each.path in names}
    for name, is_folder in names.items():
        if is_folder and name not in found:
            found |= {each.path: each for each in checkpoints(name, recursive=recursive, storage_options=options)}
    if not names:
        msg = f"No checkpoint fits {redacted(place.text)}. Check the path."
        raise FileNotFoundError(msg)
    return sorted(found.values(), key=order)


def latest(
    root: str | os.PathLike[str], *, recursive: bool = False, storage_options: Mapping[str, Any] | None = None
) -> ListedCheckpoint | None:
    """The last of ``checkpoints`` that is whole; None if there is none.

    A step that lacks a file which other steps have is not whole, nor is a folder that lacks one of its files, of which
    its manifest is read.

    Raises:
        OSError: as ``checkpoints``.
    """
    return latest_of(checkpoints(root, recursive=recursive, storage_options=storage_options), storage_options)


def latest_of(
    found: Iterable[ListedCheckpoint], storage_options: Mapping[str, Any] | None = None
) -> ListedCheckpoint | None:
    """The last of some checkpoints that is whole; as ``latest``."""
    for step in reversed(steps_of(found)):
        try:
            for each in step.members if not step.flaw else ():
                if each.sharded:
                    completeness.check_complete(each.path, storage_options)
        except (CheckpointError, FileNotFoundError):
            continue
        if not step.flaw:
            return step.members[-1]
    return None


def order(found: ListedCheckpoint) -> Any:
    """What checkpoints are sorted by; a moment in a name counts more than when it was written, as copies are later."""
    time = found.modified.timestamp() if found.modified else 0.0
    moment = naming.parse_name(found.path).moment
    if moment is None:
        return 0, 0, "", time, found.path
    counts_epochs, step, stamp = moment
    return 1 if counts_epochs else 2, step, stamp, time, found.path


def _folders(place: Directory) -> dict[str, list[File]]:
    """The files of the root and of each folder in it."""
    files, folders = place.scan()

    def scan(folder: str) -> list[File]:
        if s3.is_s3(place.fs):
            first, more = s3.first_page(place.fs, place.inner(folder), folder)
            # A folder may hold millions of other files. Manifests come early in the order of names, but for one.
            metadata = place.inner(f"{folder}{naming.METADATA}")
            if not more or not (naming.is_loadable(map(_base, first)) or s3.lists(place.fs, metadata)):
                return first
        try:
            return place.scan(folder)[0]
        except FileNotFoundError:
            return []  # gone by now
        except PermissionError:
            if place.fs is not None:
                raise
            return []  # what nobody may look into is no checkpoint either

    return {"": files, **dict(zip(folders, map_parallel(place.fs, scan, folders), strict=True))}


def _sharded(place: Directory, folder: str, files: Sequence[File]) -> ListedCheckpoint | None:
    held = [file for file in files if file.size != 0 and not naming.is_temporary(file.name)]
    names = {_base(file) for file in held}
    # All the values of a small Cerebras checkpoint can be in its metadata.
    if not naming.is_loadable(names) or (len(held) < 2 and naming.METADATA not in names):
        return None
    name = folder.rstrip("/")
    modified = max((file.modified for file in held if file.modified), default=None)
    size = sum(file.size or 0 for file in held)
    return ListedCheckpoint(place.path_of(name), naming.step_of(name), modified, size, len(held), True)


def _is_below(folder: str, others: Collection[str]) -> bool:
    """Whether a folder is in one of others, by their names with slashes at their ends."""
    ends = [place + 1 for place, letter in enumerate(folder) if letter == "/"]
    return any(folder[:end] in others for end in ends[:-1])


def _single(place: Directory, files: Sequence[File]) -> Iterator[ListedCheckpoint]:
    for file in files:
        name = _base(file)
        if file.size != 0 and naming.is_checkpoint(name):
            yield ListedCheckpoint(
                place.path_of(file.name), naming.step_of(name), file.modified, file.size or 0, 1, False
            )


def _base(file: File) -> str:
    return file.name.rpartition("/")[2]
