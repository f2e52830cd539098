"""Lists the checkpoints below a root, in order, and groups them by step."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fsspec_csx.errors import CheckpointError, InvalidCheckpointError
from fsspec_csx.formats.registry import layouts, manifests
from fsspec_csx.manage import contents, naming, s3
from fsspec_csx.manage.directory import Directory, File
from fsspec_csx.manage.location import pattern_matches
from fsspec_csx.storage.atomic import is_temporary
from fsspec_csx.storage.paths import redacted
from fsspec_csx.storage.threads import map_parallel

# Trainings do not save such files at each step. Hugging Face writes those of the second set beside its checkpoints.
_APART = re.compile(r"(?:^|[^A-Za-z])(?:best|last|latest|final)(?:[^A-Za-z]|$)", re.IGNORECASE)
_FINAL = re.compile(
    r"(?:(?:pytorch_|adapter_)?model|training_args|optimizer|scheduler|consolidated)\.(?:safetensors|bin|pt|pth)"
)


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint in a listing."""

    path: str  # as for ``load``
    step: int | None  # the step in its name (see ``manage.naming``), or the epoch; None if there is neither
    modified: datetime | None  # the time of the last write; None if unknown
    size: int  # the size of all its files, in bytes
    files: int  # the number of its files
    sharded: bool  # whether it is a folder


@dataclass
class Step:
    """The checkpoints of one step of one run."""

    label: naming.ParsedName  # the parsed name of the first
    members: list[ListedCheckpoint] = field(default_factory=list)
    families: set[str] = field(default_factory=set)  # the names of the members without numbers
    run: str = ""  # equal for all steps of one run; families that never share a step belong to different runs
    flaw: str = ""  # why the step may be incomplete, as part of a sentence; empty if it is complete

    @property
    def time(self) -> float | None:
        """The time of the last write of a file, in seconds since 1970; None if it is unknown for any file."""
        times = [each.modified.timestamp() for each in self.members if each.modified]
        return max(times) if len(times) == len(self.members) else None

    @property
    def is_without_step(self) -> bool:
        """Whether this is a best, last or final file, which belongs to no step."""
        name = self.members[0].path.rpartition("/")[2]
        return bool(_APART.search(self.label.family) or _FINAL.fullmatch(name))


def checkpoints(
    root: str | os.PathLike[str], *, recursive: bool = False, storage_options: Mapping[str, Any] | None = None
) -> list[ListedCheckpoint]:
    """List the checkpoints under a root, the newest last: sorted by step, and within a step by time.

    Names without a step come first, sorted by time, then names with only an epoch. Names decide what is a checkpoint
    (see ``manage.contents``). Empty files, temporary files, folders without a manifest, and folders that ``load`` does
    not read are not listed. A folder with a Hugging Face model is one checkpoint, unless it holds other checkpoints.
    The metadata of Cerebras folders is read, to skip unfinished ones.

    Raises a FileNotFoundError if the folder or the bucket does not exist, a NotADirectoryError if the root is a file.
    """
    place = Directory(root, storage_options)
    folders = place.tree() if recursive else _folders(place)
    found = []
    listing = {folder: contents.listing_layout([file.base for file in files]) for folder, files in folders.items()}
    own = {folder: layout for folder, layout in listing.items() if folder and layout}
    finished = map_parallel(place.fs, lambda each: own[each].is_finished(place.below(each.rstrip("/"))), own)
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


def steps_of(found: Iterable[ListedCheckpoint]) -> list[Step]:
    """Group checkpoints by step, in the order of each step's last member.

    For names without a step, only the shards of one file form a group.
    """
    steps: dict[Any, Step] = {}
    for each in found:
        label, folder = naming.parse_name(each.path), each.path.rpartition("/")[0]
        apart = label.family if _APART.search(label.family) else ""
        key = folder, apart, label.moment or naming.shard_set(each.path)
        step = steps[key] = steps.pop(key, Step(label))
        step.members.append(each)
        step.families.add(f"{folder}/{label.family}{'/' if each.sharded else ''}")
    _find_runs([step for step in steps.values() if step.label.moment])
    return [*steps.values()]


def check_complete(path: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Raise an InvalidCheckpointError unless a checkpoint folder has all its files; they are not read.

    It compares names with the manifest or index, and for torch.distributed.checkpoint also sizes. It compares the size
    of a lone ``model.safetensors`` with the header. The metadata of a Cerebras checkpoint must be complete.
    """
    root = Directory(path, storage_options)
    sizes = {file.name: file.size for file in root.scan()[0]}
    for layout in layouts():
        layout.check_complete(root, sizes, lambda: {name: file.size for name, file in root.files().items()})
    listing = contents.listing_layout(sizes)
    if listing and not listing.is_finished(root):
        raise InvalidCheckpointError(f"{root.name} was not finished.", "Save it again, or delete it.")


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
                    check_complete(each.path)
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
        if s3.lists_in_order(place.fs, place.at(folder)):
            first, more = s3.first_page(place.fs, place.at(folder), folder)
            # One page suffices, as most manifests sort early, and Hugging Face folders are small. A folder may have
            # millions of other files.
            late = [place.at(f"{folder}{layout.manifest}") for layout in layouts() if layout.lists_files]
            if not more or not (
                contents.is_loadable(file.base for file in first) or any(s3.is_listed(place.fs, each) for each in late)
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
    if not contents.is_loadable(names):
        return None
    # A lone manifest is not a checkpoint, but the metadata of a small Cerebras checkpoint can hold all its values.
    is_alone = names <= {*manifests(names)} and not contents.listing_layout(names)
    is_spread = is_alone and any(layout.manifest in names for layout in layouts())
    shards = contents.shards_in(place, place.scan(folder)[1]) if is_spread else []
    if is_alone and not shards and not any(map(contents.is_checkpoint, names)):
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
        if file.size != 0 and contents.is_checkpoint(name):
            yield ListedCheckpoint(
                place.path_of(file.name), naming.step_of(name), file.modified, file.size or 0, 1, False
            )


def _find_runs(steps: list[Step]) -> None:
    """Find the runs, and the steps that lack files that other steps of their run have."""
    runs: dict[str, set[str]] = {}
    for step in steps:
        joined = {id(run): run for each in step.families if (run := runs.get(each))}
        run = step.families.union(*joined.values())
        if len(joined) != 1 or run not in joined.values():
            runs.update(dict.fromkeys(run, run))
    members: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        run = runs[next(iter(step.families))]
        step.run = min(run)
        members[step.run].append(step)
        if lacking := sorted(each.rstrip("/").rpartition("/")[2] for each in run - step.families):
            step.flaw = f"it lacks {', '.join(lacking)}, which other steps have"
    for those in members.values():
        if not _in_order(those):
            for step in those:
                step.flaw = "steps and epochs are not in the same order"


def _in_order(steps: list[Step]) -> bool:
    """Return whether steps grow with epochs; some trainings restart the count in each epoch."""
    known = [(step.label.step, step.label.epoch) for step in steps if step.label.epoch is not None]
    epochs = [epoch for _, epoch in sorted(known)]
    return epochs == sorted(epochs)
