"""Lists the checkpoints below a root, in order."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.registry import layouts, manifests
from fsspec_csx.manage import completeness, naming, s3
from fsspec_csx.manage.directory import Directory, File, map_parallel
from fsspec_csx.manage.location import pattern_matches
from fsspec_csx.manage.steps import steps_of
from fsspec_csx.storage.local_file import is_temporary
from fsspec_csx.storage.paths import redacted


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint in a listing."""

    path: str  # as for ``load``
    step: int | None  # the step in its name (see ``manage.naming``), or the epoch; None if there is neither
    modified: datetime | None  # the time of the last write; None if unknown
    size: int  # the size of all its files, in bytes
    files: int  # the number of its files
    sharded: bool  # whether it is a folder


def checkpoints(
    root: str | os.PathLike[str], *, recursive: bool = False, storage_options: Mapping[str, Any] | None = None
) -> list[ListedCheckpoint]:
    """List the checkpoints under a root, the newest last: sorted by step, and within a step by time.

    Names without a step come first, sorted by time, then names with only an epoch. Names decide what is a checkpoint
    (see ``manage.naming``). Empty files, temporary files, folders without a manifest, and folders that ``load`` does
    not read are not listed. A folder with a Hugging Face model is one checkpoint, unless it holds other checkpoints.
    The metadata of Cerebras folders is read, to skip unfinished ones.

    Raises a FileNotFoundError if the folder or the bucket does not exist, a NotADirectoryError if the root is a file.
    """
    place = Directory(root, storage_options)
    folders = place.tree() if recursive else _folders(place)
    found = []
    listing = {folder: naming.listing_layout([file.base for file in files]) for folder, files in folders.items()}
    own = {folder: layout for folder, layout in listing.items() if folder and layout}
    finished = map_parallel(place.fs, lambda each: own[each].is_finished(place.as_folder(each.rstrip("/"))), own)
    unfinished = {folder for folder, complete in zip(own, finished, strict=True) if not complete}
    for folder, files in folders.items():
        if folder in unfinished:
            continue
        # The root itself is not listed. A file below a Cerebras checkpoint may be one of its objects.
        if folder and (sharded := _sharded(place, folder, files)):
            found.append(sharded)
        elif (recursive or not folder) and not _is_below(folder, own):
            found += _single(place, files)
    return sorted(found, key=sort_key)


def list_matching(path: str, *, recursive: bool = False) -> list[ListedCheckpoint]:
    """List the checkpoints under a root, or those that match a pattern or are in a matching folder.

    Raises a FileNotFoundError if nothing matches.
    """
    matches = pattern_matches(path)
    if matches is None:
        return checkpoints(path, recursive=recursive)
    if not matches:
        msg = f"No checkpoint matches {redacted(path)}. Check the path."
        raise FileNotFoundError(msg)
    found: dict[str, ListedCheckpoint] = {}
    for parent in dict.fromkeys(name.rpartition("/")[0] or "." for name in matches):
        found |= {each.path: each for each in checkpoints(parent) if each.path in matches}
    for name, is_folder in matches.items():
        if is_folder and name not in found:
            found |= {each.path: each for each in checkpoints(name, recursive=recursive)}
    return sorted(found.values(), key=sort_key)


def latest_of(found: Iterable[ListedCheckpoint]) -> ListedCheckpoint | None:
    """Return the newest complete checkpoint; None if there is none.

    A step is incomplete if it lacks a file that other steps have. A folder is incomplete if it lacks a file of its
    manifest.
    """
    for step in reversed(steps_of(found)):
        if step.flaw:
            continue
        try:
            for each in step.members:
                if each.sharded:
                    completeness.check_complete(each.path)
        except (CheckpointError, FileNotFoundError):
            continue
        return step.members[-1]
    return None


def sort_key(found: ListedCheckpoint) -> Any:
    """Return the sort key of a checkpoint; a timestamp in the name has priority, as copies are written later."""
    time = found.modified.timestamp() if found.modified else 0.0
    moment = naming.parse_name(found.path).moment
    if moment is None:
        return 0, 0, "", time, found.path
    counts_epochs, step, timestamp = moment
    return 1 if counts_epochs else 2, step, timestamp, time, found.path


def _folders(place: Directory) -> dict[str, list[File]]:
    """Return the files of the root, and of each folder in it."""
    files, folders = place.scan()

    def scan(folder: str) -> list[File]:
        if s3.is_s3(place.fs) and s3.lists_in_order(place.fs, place.inner(folder)):
            first, more = s3.first_page(place.fs, place.inner(folder), folder)
            # One page suffices, as most manifests sort early, and Hugging Face folders are small. A folder may have
            # millions of other files.
            late = [place.inner(f"{folder}{layout.manifest}") for layout in layouts() if layout.lists_files]
            if not more or not (
                naming.is_loadable(file.base for file in first) or any(s3.is_listed(place.fs, each) for each in late)
            ):
                return first
        try:
            return place.scan(folder)[0]
        except FileNotFoundError:
            return []  # deleted during the listing
        except PermissionError:
            if place.fs is not None:
                raise
            return []  # an unreadable folder is not a checkpoint

    return {"": files, **dict(zip(folders, map_parallel(place.fs, scan, folders), strict=True))}


def _sharded(place: Directory, folder: str, files: Sequence[File]) -> ListedCheckpoint | None:
    held = [file for file in files if file.size != 0 and not is_temporary(file.base)]
    names = {file.base for file in held}
    if not naming.is_loadable(names):
        return None
    # A lone manifest is not a checkpoint, but the metadata of a small Cerebras checkpoint can hold all its values.
    is_alone = names <= {*manifests(names)} and not naming.listing_layout(names)
    if is_alone and not any(map(naming.is_checkpoint, names)):
        shards = naming.shards_in(place, place.scan(folder)[1])
        if not shards:
            return None
        held += shards
    name = folder.rstrip("/")
    modified = max((file.modified for file in held if file.modified), default=None)
    size = sum(file.size or 0 for file in held)
    return ListedCheckpoint(place.path_of(name), naming.step_of(name), modified, size, len(held), True)


def _is_below(folder: str, others: Collection[str]) -> bool:
    """Return whether a folder is inside one of the others; names end with a slash."""
    ends = [index + 1 for index, letter in enumerate(folder) if letter == "/"]
    return any(folder[:end] in others for end in ends[:-1])


def _single(place: Directory, files: Sequence[File]) -> Iterator[ListedCheckpoint]:
    for file in files:
        name = file.base
        if file.size != 0 and naming.is_checkpoint(name):
            yield ListedCheckpoint(
                place.path_of(file.name), naming.step_of(name), file.modified, file.size or 0, 1, False
            )
