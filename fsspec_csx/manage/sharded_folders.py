"""Copies and moves checkpoint folders, so that a manifest never appears without the files it names."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fsspec.callbacks import Callback

from fsspec_csx.errors import CheckpointPathError, ChecksumError
from fsspec_csx.formats.dcp.folder import is_prefix
from fsspec_csx.formats.huggingface import names as huggingface
from fsspec_csx.manage import cerebras_folders, naming
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.file_copy import copy_file, same_content
from fsspec_csx.manage.location import Location, already_exists
from fsspec_csx.s3.upload_journal import digest
from fsspec_csx.storage.local_file import publish, temporary_path
from fsspec_csx.storage.paths import redacted
from fsspec_csx.storage.progress import ProgressMeter, run_in_threads

_SMALL = 8 * 2**20
_AT_A_TIME = 10


class CheckpointFolder:
    """A folder that is one checkpoint.

    Args:
        root: the folder.

    Attributes:
        names: the names of all files below it, of a Cerebras checkpoint those of its own; manifests last.
        size: their total size in bytes.
        is_cerebras: whether it is a Cerebras checkpoint, whose objects have user metadata to keep.

    Raises:
        IsADirectoryError: if it is not a checkpoint.
    """

    def __init__(self, root: Directory) -> None:
        self._root = root
        self._metadata = Location.below(root, naming.METADATA)
        files = [
            file for folder in root.tree().values() for file in folder if not naming.is_temporary(_last(file.name))
        ]
        own = {*cerebras_folders.own_names(root, [file.name for file in files])}
        self._is_all = not own or len(own) == len(files)
        files = [file for file in files if not own or file.name in own]
        self._manifests = {*_manifests(file.name for file in files)}
        if not self._manifests:
            msg = f"{redacted(root.path)} is a folder, but not a checkpoint. Name the checkpoints in it."
            raise IsADirectoryError(msg)
        self.names = sorted((file.name for file in files), key=lambda name: (name in self._manifests, name))
        self.size = sum(file.size or 0 for file in files)
        self._small = {file.name for file in files if file.size is not None and file.size <= _SMALL}
        self.is_cerebras = naming.METADATA in self.names

    def target(
        self, target: str | os.PathLike[str], name: str, options: Mapping[str, Any] | None
    ) -> str | os.PathLike[str]:
        """The path to copy to: a local folder gets the name added, unless it is a checkpoint or about to become one."""
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
        """Copy or move the checkpoint.

        Args:
            target: the folder to write.
            progress: reports the bytes.
            overwrite: whether a checkpoint there may be replaced; its other files are removed.
            moving: whether to compare all bytes and then delete the source.

        Raises:
            CheckpointPathError: if the target is the source, or inside it, or cannot hold the user metadata of a
                Cerebras checkpoint, or if a file name leads out of it.
            ChecksumError: if a copy differs.
            FileExistsError: if the target has a checkpoint, or a file of one, unless ``overwrite``.
        """
        self._check_apart(target)
        if target.fs is None:
            self._check_names()
        if self.is_cerebras:
            cerebras_folders.check_target(self._root, target)
        held = _held(target)
        own = cerebras_folders.own_names(target, held)
        local = target.fs is None
        if not overwrite:
            if (_manifests(held) or _models(held, self.names)) and not self._is_resumed(target, held):
                raise already_exists(target.path)
            for name in held:
                if local and name in self.names:
                    raise already_exists(target.path_of(name))
        elif own and self.is_cerebras and any("/" in name for name in {*self.names}.intersection(held).difference(own)):
            msg = f"{redacted(target.path)} has other files, which the copy would replace. Choose another name."
            raise FileExistsError(msg)
        whole = moving and local and self._is_all and not os.path.lexists(target.inner())
        if not (whole and self._renamed(target)):
            meter = ProgressMeter(progress, self.size)
            if local:
                self._copy_local(target, held, own, meter, overwrite, moving)
            else:
                self._copy_in_place(target, held, own, meter, overwrite, moving)
            if moving:
                self._remove()
            meter.finish()

    def is_same_file(self, target: Directory) -> bool:
        """Whether the target is a complete copy, with the same bytes and user metadata, and no other manifest."""
        held = {*_held(target)}
        if not held.issuperset(self.names) or not self._manifests.issuperset(_manifests(held)):
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
            reason = f"{redacted(target.path)} is the source folder, or inside it."
            raise CheckpointPathError(reason, "Name another target.")

    def _check_names(self) -> None:
        """Refuse keys that would be files outside the target folder."""
        for name in self.names:
            if {".", ".."} & set(name.replace(os.sep, "/").split("/")) or "\0" in name:
                reason = f"{redacted(self._root.path)} has the file {name!r}, which would be outside the folder."
                raise CheckpointPathError(reason, "Do not copy it, and ask its author.")

    def _copy_in_place(
        self, target: Directory, held: list[str], own: list[str], meter: ProgressMeter, overwrite: bool, moving: bool
    ) -> None:
        """Copy where folders cannot be renamed: the old manifest is deleted first, the new one written last."""
        before = self._metadata.state() if self.is_cerebras else {}
        if self.is_cerebras and (overwrite or naming.METADATA in held or not {*held} & {*self.names}):
            cerebras_folders.mark_incomplete(target.fs, target.inner(), {*self.names, *own})
            held = [name for name in held if name != naming.METADATA]
        if overwrite:
            _remove_former(target, held, self.names, own)

        def copy_one(name: str, advance: Callable[[int], object]) -> None:
            there = name in held and name not in self._manifests
            replaced = overwrite or name == naming.METADATA
            self._copy_one(name, target, advance, there=there, overwrite=replaced, moving=moving)

        self._copy_parts(copy_one, meter, target)
        for name in sorted(self._manifests):
            if name == naming.METADATA:
                self._metadata.check_state(before)  # another save reuses the names of objects
            copy_one(name, meter.advance)

    def _copy_parts(
        self, copy_one: Callable[[str, Callable[[int], object]], None], meter: ProgressMeter, target: Directory
    ) -> None:
        """Copy all but the manifests: small files in parallel, large ones one by one, in parallel parts."""
        threads = _AT_A_TIME if _is_thread_safe(self._root.fs) and _is_thread_safe(target.fs) else 1
        parts = [name for name in self.names if name not in self._manifests]
        together = [name for name in parts if name in self._small]
        if together:
            run_in_threads(copy_one, together, meter.advance, threads=threads, name="fsspec_csx-copy")
        for name in parts:
            if name not in self._small:
                copy_one(name, meter.advance)

    def _is_resumed(self, target: Directory, held: list[str]) -> bool:
        """Whether the target has an interrupted copy of a Cerebras checkpoint."""
        return self.is_cerebras and _manifests(held) == [naming.METADATA] and cerebras_folders.is_incomplete(target)

    def _copy_local(
        self, target: Directory, held: list[str], own: list[str], meter: ProgressMeter, overwrite: bool, moving: bool
    ) -> None:
        """Copy to a folder beside the target, and rename it when it is complete."""
        staging = Directory(self._staging(target))
        os.makedirs(staging.inner(), exist_ok=True)
        before = _held(staging)

        def copy_one(name: str, advance: Callable[[int], object]) -> None:
            self._copy_one(name, staging, advance, there=name in before, overwrite=True, moving=moving)

        self._copy_parts(copy_one, meter, target)
        for name in sorted(self._manifests):
            copy_one(name, meter.advance)
        manage_delete.remove(
            None, [staging.inner(name) for name in _held(staging, leftovers=True) if name not in self.names]
        )
        if not held:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(target.inner())  # an empty folder
            os.rename(staging.inner(), target.inner())
            return
        _remove_former(target, held, self.names, own)
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
            if self._is_alike(source, goal):  # from an interrupted copy
                advance(source.state()["size"])
                return
            if not overwrite:
                raise already_exists(goal.text)
        copy_file(source, goal, advance, overwrite=overwrite, verified=moving)
        if moving and self.is_cerebras and not cerebras_folders.same_user_metadata(source, goal):
            reason = f"{goal.display_path} is a copy of {source.display_path}, but lacks its user metadata."
            raise ChecksumError(reason, "Keep the source, or convert it to one file: cszoo checkpoint convert.")

    def _renamed(self, target: Directory) -> bool:
        """Try to move by renaming the folder; return whether that worked."""
        if self._root.fs is not None or os.path.islink(self._root.inner()):
            return False
        os.makedirs(os.path.dirname(target.inner()), exist_ok=True)
        try:
            os.rename(self._root.inner(), target.inner())
        except OSError:
            return False  # on another disk, for instance
        return True

    def _remove(self) -> None:
        """Delete the source, so that it never looks complete when part of it is deleted."""
        metadata = self._root.inner(naming.METADATA) if self.is_cerebras else None
        manifests = [self._root.inner(name) for name in self._manifests if name != naming.METADATA]
        files = [self._root.inner(name) for name in self.names]
        to_delete = manage_delete.DeleteTarget(
            self._root.path, self._root.fs, files, manifests, self.size, self._root.inner(), metadata
        )
        for error in manage_delete.delete([to_delete]).values():
            raise error
        folder = self._root.inner()
        if self._root.fs is None:
            for path, _, _ in os.walk(folder, topdown=False):
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(path)

    def _staging(self, target: Directory) -> str:
        """The temporary folder beside a local target."""
        path = os.path.realpath(target.inner())
        return temporary_path(path, digest(self._root.path, path)[:16])


def _is_thread_safe(fs: Any) -> bool:
    """Whether a filesystem can be used from several threads."""
    return fs is None or getattr(fs, "async_impl", False)


def _held(root: Directory, *, leftovers: bool = False) -> list[str]:
    """The names of the files below a folder; none if it does not exist."""
    try:
        files = [file.name for folder in root.tree().values() for file in folder]
    except FileNotFoundError:
        return []
    return [name for name in files if leftovers or not naming.is_temporary(_last(name))]


def _remove_former(target: Directory, held: list[str], names: list[str], own: list[str]) -> None:
    """Remove the manifests of the former checkpoint, and then those of its parts that the new one lacks."""
    manifests = [*dict.fromkeys((*_manifests(held), *_models(held, names)))]
    objects = {*own}
    parts = [name for name in held if name in objects or _is_own_shard(name)]
    shards = [name for name in parts if name not in (*names, *manifests)]
    for going in (manifests, shards):
        for error in manage_delete.remove(target.fs, [target.inner(name) for name in going]).values():
            raise error


def _is_own_shard(name: str) -> bool:
    """Whether a file below a checkpoint is a shard of it, and not of a checkpoint in a folder below."""
    folder, _, last = name.rpartition("/")
    return naming.is_shard(last) and (not folder or is_prefix(folder))


def _manifests(names: Iterable[str]) -> list[str]:
    """The manifests directly in a folder, by the names of all files below it."""
    return naming.manifests(name for name in names if "/" not in name)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _models(held: Iterable[str], names: Iterable[str]) -> list[str]:
    """The models that a target holds, if a model of Hugging Face comes there: load may prefer one of them to it."""
    top = [[each for each in those if "/" not in each] for those in (held, names)]
    return huggingface.models(top[0]) if huggingface.models(top[1]) else []
