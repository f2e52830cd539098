"""copy and move: checkpoints from any path to any other, byte for byte, whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsspec.callbacks import Callback

from fsspec_csx.errors import CheckpointPathError
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.file_copy import copy_file, rename_file, same_content
from fsspec_csx.manage.location import Location, already_exists
from fsspec_csx.manage.sharded_folders import CheckpointFolder
from fsspec_csx.storage.paths import redacted
from fsspec_csx.storage.progress import ProgressMeter, report_progress


@dataclass(frozen=True)
class CopyResult:
    """A checkpoint that was copied or moved.

    Attributes:
        source: its path before.
        target: its path now.
        size: in bytes.
    """

    source: str
    target: str
    size: int


def copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> str:
    """Copy a checkpoint, byte for byte, between any two paths.

    A folder that is one checkpoint is copied as one: its manifest last. A copy from or to S3 that was broken off goes
    on where it stopped, when this is called again with the same paths.

    Args:
        source: a local path or an fsspec URL, as of ``load``.
        target: the like; one that ends in a slash, or is a local folder, takes the source's name.
        overwrite: whether a checkpoint at the target may be replaced.
        source_options: arguments for the source's filesystem, such as ``{"profile": "my-profile"}``.
        target_options: arguments for the target's.
        callback: as of ``load``.

    Returns:
        The path that was written.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint, or both are of the same one.
        FileExistsError: if there is something at the target, unless ``overwrite``.
        IsADirectoryError: if the source is a folder that is no checkpoint, or there is a folder at the target.
        OSError: if the source changed meanwhile, and whatever a filesystem raised, as it raised it.
    """
    done = transfer(
        source,
        target,
        moving=False,
        overwrite=overwrite,
        source_options=source_options,
        target_options=target_options,
        callback=callback,
    )
    return done.target


def move(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> str:
    """Move a checkpoint; as ``copy``, and the source is deleted when all bytes of the copy have been compared.

    A file that is at the target already, with the very bytes of the source, counts as the copy.

    Args:
        source: as of ``copy``; of a local link, the file that it points to stays.
        target: as of ``copy``.
        overwrite: as of ``copy``.
        source_options: as of ``copy``.
        target_options: as of ``copy``.
        callback: as of ``copy``.

    Returns:
        The path that was written.

    Raises:
        ChecksumError: an OSError, if the copy is not the same; then the source stays.
        OSError: as of ``copy``.
    """
    done = transfer(
        source,
        target,
        moving=True,
        overwrite=overwrite,
        source_options=source_options,
        target_options=target_options,
        callback=callback,
    )
    return done.target


def transfer(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    moving: bool,
    overwrite: bool = False,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> CopyResult:
    """Copy or move a checkpoint; as ``copy`` and ``move``, and tells more of it."""
    origin = Location.of(source, source_options)
    if moving and origin.version:
        raise CheckpointPathError(f"{origin.display_path!r} names one version of an object.", "Leave ?versionId= away.")
    if origin.is_folder():
        shards = CheckpointFolder(Directory(source, source_options))
        goal_root = Directory(shards.target(target, origin.name, target_options), target_options)
        with report_progress(callback, goal_root.path) as progress:
            shards.copy_to(goal_root, progress, overwrite=overwrite, moving=moving)
        return CopyResult(origin.text, goal_root.path, shards.size)
    goal = Location.of(_named(target, origin.name), target_options)
    size = origin.state()["size"]
    if moving and not overwrite and _is_there(origin, goal):
        origin.remove()  # a former move got as far as that
        return CopyResult(origin.text, goal.text, size)
    _check_target(origin, goal, overwrite)
    with report_progress(callback, goal.text) as progress:
        meter = ProgressMeter(progress, size)
        if moving:
            goal.make_parents()
        if not (moving and rename_file(origin, goal, overwrite=overwrite)):
            copy_file(origin, goal, meter.advance, overwrite=overwrite, verified=moving)
            if moving:
                origin.remove()
        meter.finish()
    return CopyResult(origin.text, goal.text, size)


def transferred(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    moving: bool,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
) -> CopyResult | None:
    """What a former ``transfer`` did; None if there is no copy that is the same, or the source is still to be deleted.

    A source that was moved is gone; then there must be a checkpoint of its name at the target.
    """
    origin = Location.of(source, source_options)
    goal = Location.of(_named(target, origin.name), target_options)
    if not goal.exists():
        return None
    if not origin.exists():
        return CopyResult(origin.text, goal.text, 0) if moving else None
    if moving:
        return None
    if origin.is_folder():
        shards = CheckpointFolder(Directory(source, source_options))
        goal_root = Directory(shards.target(target, origin.name, target_options), target_options)
        return CopyResult(origin.text, goal_root.path, shards.size) if shards.is_same_file(goal_root) else None
    return CopyResult(origin.text, goal.text, origin.state()["size"]) if _is_there(origin, goal) else None


def takes_names(target: str | os.PathLike[str]) -> bool:
    """Whether a target is one that takes the source's name."""
    text = os.fspath(target)
    return text.endswith("/") or os.path.isdir(text)


def _named(target: str | os.PathLike[str], name: str) -> str | os.PathLike[str]:
    text = os.fspath(target)
    if not takes_names(target):
        return target
    named = f"{text}{name}" if text.endswith("/") else f"{text}/{name}"
    return named if isinstance(target, str) else type(target)(named)  # type: ignore[call-arg]


def _is_there(source: Location, target: Location) -> bool:
    """Whether there is another file at the target that has the same bytes."""
    return (
        not source.is_same_file(target) and target.exists() and not target.is_folder() and same_content(source, target)
    )


def _check_target(source: Location, target: Location, overwrite: bool) -> None:
    if source.is_same_file(target):
        reason = f"{redacted(target.text)} is the very file that is to be copied or moved."
        raise CheckpointPathError(reason, "Name another target.")
    if overwrite and target.bulk:
        return  # S3 can have an object of a folder's name; and whether there is one only who may list can ask
    if not target.exists():
        return
    with contextlib.suppress(FileNotFoundError):  # a link to nothing
        if target.is_folder():
            msg = f"{target.display_path} is a folder. End it with a slash to copy into it."
            raise IsADirectoryError(msg)
    if not overwrite:
        raise already_exists(target.text)
