"""Copies and moves checkpoints between any two paths, byte for byte, completely or not at all."""

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
from fsspec_csx.manage.folder_copy import CheckpointFolder, FolderCopy
from fsspec_csx.manage.location import Location, already_exists, refuse_index, with_name
from fsspec_csx.storage.paths import redacted
from fsspec_csx.storage.progress import ProgressMeter, report_progress


@dataclass(frozen=True)
class CopyResult:
    """A copied or moved checkpoint."""

    source: str
    target: str
    bytes: int


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

    The manifest of a checkpoint folder is copied last. Repeating the call resumes an interrupted copy from or to S3.

    Args:
        source: a local path or an fsspec URL, as for ``load``.
        target: a local path or an fsspec URL. If it ends in a slash, or is a local folder, the source's name is added.
        overwrite: whether an existing checkpoint may be replaced.
        source_options: arguments for the source's filesystem, such as ``{"profile": "my-profile"}``.
        target_options: arguments for the target's filesystem.
        callback: as for ``load``.

    Returns:
        The path of the copy.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint, or both name the same one.
        FileExistsError: if the target exists, unless ``overwrite``.
        IsADirectoryError: if the source is a folder but not a checkpoint, or the target is a folder.
        OSError: if the source changed during the copy, or for an error of a filesystem.
    """
    transfer = CheckpointTransfer(source, target, source_options, target_options)
    return transfer.run(moving=False, overwrite=overwrite, callback=callback).target


def move(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> str:
    """Move a checkpoint: copy it, compare all bytes, and delete the source.

    A file at the target with the same bytes counts as the copy. A local link is removed, but not the file behind it.
    Arguments, result and errors are as for ``copy``.

    Raises:
        ChecksumError: an OSError, if the copy differs; the source stays.
    """
    transfer = CheckpointTransfer(source, target, source_options, target_options)
    return transfer.run(moving=True, overwrite=overwrite, callback=callback).target


@dataclass(repr=False)  # the options may have secrets
class CheckpointTransfer:
    """A copy or move of a checkpoint; for the arguments see ``copy``."""

    source: str | os.PathLike[str]
    target: str | os.PathLike[str]
    source_options: Mapping[str, Any] | None = None
    target_options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self._origin = Location.of(self.source, self.source_options)

    def run(self, *, moving: bool, overwrite: bool = False, callback: Callback | None = None) -> CopyResult:
        """Copy or move the checkpoint."""
        origin = self._origin
        if moving and origin.version:
            raise CheckpointPathError(f"{origin.display_path!r} names one version of an object.", "Remove ?versionId=.")
        if origin.is_folder():
            shards, goal_root = self._folders()
            with report_progress(callback, goal_root.text) as progress:
                FolderCopy(shards, goal_root, progress, overwrite=overwrite, moving=moving).run()
            return CopyResult(origin.text, goal_root.text, shards.size)
        refuse_index(origin.text)
        goal, before = self._goal(), origin.state()
        size = before["size"]
        if moving and not overwrite and _is_there(origin, goal):
            origin.remove_unchanged(before)  # an interrupted move left it
            return CopyResult(origin.text, goal.text, size)
        _check_target(origin, goal, overwrite)
        with report_progress(callback, goal.text) as progress:
            meter = ProgressMeter(progress, size)
            if moving:
                goal.make_parents()
            if not (moving and rename_file(origin, goal, overwrite=overwrite)):
                copy_file(origin, goal, meter.advance, overwrite=overwrite, verified=moving)
                if moving:
                    origin.remove_unchanged(before)
            meter.finish()
        return CopyResult(origin.text, goal.text, size)

    def find(self, *, moving: bool) -> CopyResult | None:
        """Return the result of an earlier run; None without an equal copy, or if a move must delete the source."""
        origin, goal = self._origin, self._goal()
        if not goal.exists():
            return None
        if not origin.exists():
            return CopyResult(origin.text, goal.text, 0) if moving else None
        if moving:
            return None
        if origin.is_folder():
            shards, goal_root = self._folders()
            return CopyResult(origin.text, goal_root.text, shards.size) if shards.is_same_file(goal_root) else None
        return CopyResult(origin.text, goal.text, origin.state()["size"]) if _is_there(origin, goal) else None

    def _goal(self) -> Location:
        return Location.of(with_name(self.target, self._origin.name), self.target_options)

    def _folders(self) -> tuple[CheckpointFolder, Directory]:
        shards = CheckpointFolder(Directory(self.source, self.source_options))
        target = shards.target(self.target, self._origin.name, self.target_options)
        return shards, Directory(target, self.target_options)


def _is_there(source: Location, target: Location) -> bool:
    """Return whether the target is another file with the same bytes."""
    return (
        not source.is_same_file(target) and target.exists() and not target.is_folder() and same_content(source, target)
    )


def _check_target(source: Location, target: Location, overwrite: bool) -> None:
    if source.is_same_file(target):
        reason = f"{redacted(target.text)} is the source file."
        raise CheckpointPathError(reason, "Name another target.")
    if overwrite and target.is_csx:
        return  # on S3 an object may have a folder's name, and the check needs the right to list
    if not target.exists():
        return
    with contextlib.suppress(FileNotFoundError):  # a dangling link
        if target.is_folder():
            msg = f"{target.display_path} is a folder. End it with a slash to copy into it."
            raise IsADirectoryError(msg)
    if not overwrite:
        raise already_exists(target.text)
