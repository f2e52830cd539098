"""The checkpoints below a root, in order."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fsspec_csx.errors import CheckpointError
from fsspec_csx.manage import cerebras_folders, completeness, kinds, naming, s3
from fsspec_csx.manage.directory import File, Root, side_by_side
from fsspec_csx.manage.steps import steps_of


@dataclass(frozen=True)
class Found:
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
) -> list[Found]:
    """The checkpoints under a root, the newest last: in order of their steps, and those of one step in order of time.

    Those whose names say no step come before the others, in order of time; and those that say an epoch alone before
    those that say a step. A checkpoint is what has a name of one (``manage.kinds``); a file without any bytes, one that
    is not whole yet, and a folder without its manifest is none, nor is a folder that ``load`` does not read.
    Of a Cerebras checkpoint, which is a folder, a read tells whether it was finished.

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
    place = Root(root, storage_options)
    folders = place.tree() if recursive else _folders(place)
    found = []
    of_cerebras = {folder: None for folder, files in folders.items() if folder and kinds.CEREBRAS in map(_base, files)}
    whole = side_by_side(place.fs, lambda folder: cerebras_folders.finished(place, folder), of_cerebras)
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


def latest(
    root: str | os.PathLike[str], *, recursive: bool = False, storage_options: Mapping[str, Any] | None = None
) -> Found | None:
    """The last of ``checkpoints`` that is whole; None if there is none.

    A step that lacks a file which other steps have is not whole, nor is a folder that lacks one of its files, of which
    its manifest is read.

    Raises:
        OSError: as ``checkpoints``.
    """
    return latest_of(checkpoints(root, recursive=recursive, storage_options=storage_options), storage_options)


def latest_of(found: Iterable[Found], storage_options: Mapping[str, Any] | None = None) -> Found | None:
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


def order(found: Found) -> Any:
    """What checkpoints are sorted by; a moment in a name counts more than when it was written, as copies are later."""
    time = found.modified.timestamp() if found.modified else 0.0
    moment = naming.label_of(found.path).moment
    if moment is None:
        return 0, 0, "", time, found.path
    counts_epochs, step, stamp = moment
    return 1 if counts_epochs else 2, step, stamp, time, found.path


def _folders(place: Root) -> dict[str, list[File]]:
    """The files of the root and of each folder in it."""
    files, folders = place.scan()

    def scan(folder: str) -> list[File]:
        if s3.is_s3(place.fs):
            first, more = s3.first_page(place.fs, place.inner(folder), folder)
            # A folder may hold millions of other files. Manifests come early in the order of names, but for one.
            metadata = place.inner(f"{folder}{kinds.CEREBRAS}")
            if not more or not (kinds.is_loaded(map(_base, first)) or s3.lists(place.fs, metadata)):
                return first
        try:
            return place.scan(folder)[0]
        except FileNotFoundError:
            return []  # gone by now
        except PermissionError:
            if place.fs is not None:
                raise
            return []  # what nobody may look into is no checkpoint either

    return {"": files, **dict(zip(folders, side_by_side(place.fs, scan, folders), strict=True))}


def _sharded(place: Root, folder: str, files: Sequence[File]) -> Found | None:
    held = [file for file in files if file.size != 0 and not kinds.is_leftover(file.name)]
    names = {_base(file) for file in held}
    # All the values of a small Cerebras checkpoint can be in its metadata.
    if not kinds.is_loaded(names) or (len(held) < 2 and kinds.CEREBRAS not in names):
        return None
    name = folder.rstrip("/")
    modified = max((file.modified for file in held if file.modified), default=None)
    size = sum(file.size or 0 for file in held)
    return Found(place.path_of(name), naming.step_of(name), modified, size, len(held), True)


def _is_below(folder: str, others: Collection[str]) -> bool:
    """Whether a folder is in one of others, by their names with slashes at their ends."""
    ends = [place + 1 for place, letter in enumerate(folder) if letter == "/"]
    return any(folder[:end] in others for end in ends[:-1])


def _single(place: Root, files: Sequence[File]) -> Iterator[Found]:
    for file in files:
        name = _base(file)
        if file.size != 0 and kinds.is_checkpoint(name):
            yield Found(place.path_of(file.name), naming.step_of(name), file.modified, file.size or 0, 1, False)


def _base(file: File) -> str:
    return file.name.rpartition("/")[2]
