"""Checkpoints that are folders: copied as one, so that the manifest is never there without all that it tells of."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from fsspec.callbacks import Callback

from fsspec_csx.errors import CheckpointPathError, ChecksumError
from fsspec_csx.manage import cerebras_folders, naming
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.file_copy import copy_file, same_content
from fsspec_csx.manage.location import Location
from fsspec_csx.s3.upload_journal import digest
from fsspec_csx.storage.local_file import publish, temporary_path
from fsspec_csx.storage.paths import redacted
from fsspec_csx.storage.progress import ProgressMeter, run_in_threads

_SMALL = 8 * 2**20
_AT_A_TIME = 10


class CheckpointFolder:
    """A folder that is a checkpoint.

    Args:
        root: the folder.

    Attributes:
        names: of all files below it, manifests last.
        size: of all, in bytes.
        is_cerebras: whether it is a Cerebras checkpoint, of whose objects the user metadata counts as well.

    Raises:
        IsADirectoryError: if it is no checkpoint.
    """

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._metadata = Location.below(root, naming.METADATA)
        files = [
            file for folder in root.tree().values() for file in folder if not naming.is_temporary(_last(file.name))
        ]
        if not any(map(_is_manifest, (file.name for file in files))):
            msg = f"{redacted(root.path)} is a folder, and no checkpoint. Name the checkpoints in it."
            raise IsADirectoryError(msg)
        self.names = sorted((file.name for file in files), key=lambda name: (_is_manifest(name), name))
        self.size = sum(file.size or 0 for file in files)
        self._small = {file.name for file in files if file.size is not None and file.size <= _SMALL}
        self.is_cerebras = naming.METADATA in self.names

    def target(
        self, target: str | os.PathLike[str], name: str, options: Mapping[str, Any] | None
    ) -> str | os.PathLike[str]:
        """Where it is to be copied to.

        Args:
            target: as it was given: a folder of this machine takes the name, unless it is a checkpoint itself, or what
                is to be one was begun beside it.
            name: of this one.
            options: arguments for the target's filesystem.
        """
        text = os.fspath(target)
        if not text.endswith("/"):
            if not os.path.isdir(text):
                return target
            there = Directory(target, options)
            if naming.is_sharded(os.listdir(text)) or os.path.isdir(self._staging(there)):
                return target
            text += "/"
        return text + name if isinstance(target, str) else type(target)(text + name)  # type: ignore[call-arg]

    def copy_to(self, target: Directory, progress: Callback, *, overwrite: bool, moving: bool) -> None:
        """Copy or move it.

        Args:
            target: the folder that it becomes.
            progress: is told the bytes.
            overwrite: whether a checkpoint there may be replaced; what it has no more is removed.
            moving: whether all bytes are compared, and the source deleted then.

        Raises:
            CheckpointPathError: if the target is the source, or in it, or cannot hold a Cerebras checkpoint of S3, or
                if names of files lead out of it.
            ChecksumError: if a copy is not the same.
            FileExistsError: if there is a checkpoint, or a file of one, unless ``overwrite``.
        """
        self._check_apart(target)
        if target.fs is None:
            self._check_names()
        if self.is_cerebras:
            cerebras_folders.check_target(self._root, target)
        held = _held(target)
        local = target.fs is None
        if not overwrite:
            if any(map(_is_manifest, held)) and not self._is_resumed(target, held):
                raise FileExistsError(_exists(target.path))
            for name in held:
                if local and name in self.names:
                    raise FileExistsError(_exists(target.path_of(name)))
        if not (moving and local and not os.path.lexists(target.inner()) and self._renamed(target)):
            meter = ProgressMeter(progress, self.size)
            if local:
                self._copy_local(target, held, meter, overwrite, moving)
            else:
                self._copy_in_place(target, held, meter, overwrite, moving)
            if moving:
                self._remove()
            meter.finish()

    def is_same_file(self, target: Directory) -> bool:
        """Whether there is a copy of all of it, with the same bytes and user metadata, and no other manifest."""
        held = {*_held(target)}
        if not held.issuperset(self.names) or any(_is_manifest(name) for name in held.difference(self.names)):
            return False
        return all(
            self._is_alike(Location.below(self._root, name), Location.below(target, name)) for name in self.names
        )

    def _is_alike(self, source: Location, goal: Location) -> bool:
        alike = not self.is_cerebras or cerebras_folders.same_user_metadata(source, goal)
        return alike and not source.is_same_file(goal) and same_content(source, goal)

    def _check_apart(self, target: Directory) -> None:
        one, other = Location.below(self._root, "x"), Location.below(target, "x")
        if one.is_same_file(other) or (
            one.fs == other.fs and other.path.startswith(f"{self._root.inner().rstrip('/')}/") and one.fs is None
        ):
            reason = f"{redacted(target.path)} is the very folder that is to be copied or moved, or in it."
            raise CheckpointPathError(reason, "Name another target.")

    def _check_names(self) -> None:
        """Refuse keys that would be files elsewhere on this machine."""
        for name in self.names:
            if {".", ".."} & set(name.replace(os.sep, "/").split("/")) or "\0" in name:
                reason = f"{redacted(self._root.path)} has the file {name!r}, which cannot be in a folder."
                raise CheckpointPathError(reason, "Do not copy it; ask its author what it is.")

    def _copy_in_place(
        self, target: Directory, held: list[str], meter: ProgressMeter, overwrite: bool, moving: bool
    ) -> None:
        """Where folders cannot be renamed: the old manifest goes first, and the new one comes last."""
        before = self._metadata.state() if self.is_cerebras else {}
        former = [*held]
        if self.is_cerebras and (overwrite or naming.METADATA in held or not {*held} & {*self.names}):
            cerebras_folders.begin(target.fs, target.inner())
            held = [name for name in held if name != naming.METADATA]
        if overwrite:
            _remove_former(target, held, self.names, all_parts=naming.METADATA in former)

        def copy_one(name: str, advance: Callable[[int], object]) -> None:
            there = name in held and not _is_manifest(name)
            replaced = overwrite or name == naming.METADATA
            self._copy_one(name, target, advance, there=there, overwrite=replaced, moving=moving)

        self._copy_parts(copy_one, meter, target)
        for name in filter(_is_manifest, self.names):
            if name == naming.METADATA:
                self._metadata.check_state(before)  # names of objects are used again when it is saved anew
            copy_one(name, meter.advance)

    def _copy_parts(
        self, copy_one: Callable[[str, Callable[[int], object]], None], meter: ProgressMeter, target: Directory
    ) -> None:
        """All but the manifests, small ones side by side; large ones go in many requests each."""
        threads = _AT_A_TIME if _bears_threads(self._root.fs) and _bears_threads(target.fs) else 1
        parts = [name for name in self.names if not _is_manifest(name)]
        together = [name for name in parts if name in self._small]
        if together:
            run_in_threads(copy_one, together, meter.advance, threads=threads, name="fsspec_csx-copy")
        for name in parts:
            if name not in self._small:
                copy_one(name, meter.advance)

    def _is_resumed(self, target: Directory, held: list[str]) -> bool:
        """Whether at the target is a copy of a Cerebras checkpoint that was broken off."""
        return (
            self.is_cerebras and [*filter(_is_manifest, held)] == [naming.METADATA] and cerebras_folders.begun(target)
        )

    def _copy_local(
        self, target: Directory, held: list[str], meter: ProgressMeter, overwrite: bool, moving: bool
    ) -> None:
        """Beside the target first, and there under its name only when it is whole."""
        staging = Directory(self._staging(target))
        os.makedirs(staging.inner(), exist_ok=True)
        before = _held(staging)

        def copy_one(name: str, advance: Callable[[int], object]) -> None:
            self._copy_one(name, staging, advance, there=name in before, overwrite=True, moving=moving)

        self._copy_parts(copy_one, meter, target)
        for name in filter(_is_manifest, self.names):
            copy_one(name, meter.advance)
        manage_delete.remove(
            None, [staging.inner(name) for name in _held(staging, leftovers=True) if name not in self.names]
        )
        if not held:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(target.inner())  # an empty one
            os.rename(staging.inner(), target.inner())
            return
        _remove_former(target, held, self.names)
        for name in self.names:
            os.makedirs(os.path.dirname(target.inner(name)), exist_ok=True)
            publish(staging.inner(name), target.inner(name), exclusive=not overwrite)
        shutil.rmtree(staging.inner())

    def _copy_one(
        self,
        name: str,
        target: Directory,
        advance: Callable[[int], object],
        *,
        there: bool,
        overwrite: bool,
        moving: bool,
    ) -> None:
        source, goal = Location.below(self._root, name), Location.below(target, name)
        if there:
            if self._is_alike(source, goal):  # from a copy that was broken off
                advance(source.state()["size"])
                return
            if not overwrite:
                raise FileExistsError(_exists(goal.text))
        copy_file(source, goal, advance, overwrite=overwrite, verified=moving)
        if moving and self.is_cerebras and not cerebras_folders.same_user_metadata(source, goal):
            reason = f"{goal.display_path} has not the user metadata of {source.display_path}, of which it is a copy."
            raise ChecksumError(reason, "Keep the source, or make one file of it: cszoo checkpoint convert.")

    def _renamed(self, target: Directory) -> bool:
        """Whether it could be moved by giving the folder another name."""
        if self._root.fs is not None or os.path.islink(self._root.inner()):
            return False
        os.makedirs(os.path.dirname(target.inner()), exist_ok=True)
        try:
            os.rename(self._root.inner(), target.inner())
        except OSError:
            return False  # on another disk, for instance
        return True

    def _remove(self) -> None:
        """Delete the source, so that nothing half deleted looks whole."""
        metadata = self._root.inner(naming.METADATA) if self.is_cerebras else None
        manifests = [self._root.inner(name) for name in self.names if _is_manifest(name) and name != naming.METADATA]
        files = [self._root.inner(name) for name in self.names]
        to_delete = manage_delete.DeleteTarget(
            self._root.path, self._root.fs, files, manifests, self.size, self._root.inner(), metadata
        )
        for error in manage_delete.delete([to_delete]).values():
            raise error
        folder = self._root.inner()
        if self._root.fs is None:
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):  # something else may be in it
                    os.rmdir(path)

    def _staging(self, target: Directory) -> str:
        """The folder beside one of this machine in which it is made."""
        path = os.path.realpath(target.inner())
        return temporary_path(path, digest(self._root.path, path)[:16])


def _bears_threads(fs: Any) -> bool:
    """Whether a filesystem, or this machine's own, can be used in many threads."""
    return fs is None or getattr(fs, "async_impl", False)


def _held(root: Directory, *, leftovers: bool = False) -> list[str]:
    """The names of the files that are below a folder; none if there is no such folder."""
    try:
        files = [file.name for folder in root.tree().values() for file in folder]
    except FileNotFoundError:
        return []
    return [name for name in files if leftovers or not naming.is_temporary(_last(name))]


def _remove_former(target: Directory, held: list[str], names: list[str], *, all_parts: bool = False) -> None:
    """Remove a former checkpoint's manifests, and then its parts that the new one has not.

    Args:
        target: the folder.
        held: the names of the files in it.
        names: those of the new one.
        all_parts: whether all files there are its parts, as those of a Cerebras checkpoint are.
    """
    manifests = [name for name in held if _is_manifest(name)]
    all_parts |= naming.METADATA in held
    parts = [name for name in held if all_parts or naming.is_shard(_last(name))]
    shards = [name for name in parts if name not in (*names, *manifests)]
    for going in (manifests, shards):
        for error in manage_delete.remove(target.fs, [target.inner(name) for name in going]).values():
            raise error


def _is_manifest(name: str) -> bool:
    """Whether a file of this name makes the folder a checkpoint."""
    return "/" not in name and naming.is_manifest(name)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _exists(path: str) -> str:
    display_path = redacted(path)
    return f"{display_path} exists already. Choose another name, or replace it with --force or overwrite=True."
