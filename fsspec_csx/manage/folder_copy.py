"""Copies and moves checkpoint folders, so that a manifest never appears without the files it names."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from fsspec.callbacks import Callback

from fsspec_csx.errors import CheckpointPathError, ChecksumError
from fsspec_csx.formats.folder_layout import OwnFiles
from fsspec_csx.formats.registry import layouts, manifests
from fsspec_csx.manage import contents
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.file_copy import copy_file, same_content
from fsspec_csx.manage.location import Location, already_exists, with_name
from fsspec_csx.storage.atomic import is_temporary, publish, temporary_path
from fsspec_csx.storage.owned_files import digest
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.storage.threads import run_in_threads

logger = logging.getLogger("fsspec_csx")

_SMALL = 8 * 2**20
_AT_A_TIME = 10


class CheckpointFolder:
    """A folder that is one checkpoint; an IsADirectoryError if it is not, another OSError if a file is out of reach."""

    def __init__(self, root: Directory) -> None:
        self.root = root
        below = {name: file for name, file in root.files().items() if not _is_temporary(name)}
        # The layout of a format whose manifest lists the files, and the manifest's state before they are looked up.
        self.layout = contents.listing_layout(below)
        self.manifest = self.layout.manifest if self.layout else None
        self.state = Location.below(root, self.manifest).state() if self.manifest else {}
        own = self.layout.own_files(root, below, strict=True).names if self.layout else [*below]
        self.manifests = {*_manifests(own)}
        if not self.manifests:
            msg = f"{root.name} is a folder, but not a checkpoint. Name the checkpoints in it."
            raise IsADirectoryError(msg)
        if root.fs is None and not self.layout:
            _check_readable(root.path)
        # Manifests come last, as the folder is no checkpoint without them.
        self.names = sorted(own, key=lambda name: (name in self.manifests, name))
        sizes = {name: below[name].size for name in self.names}
        self.small = [name for name, size in sizes.items() if size is not None and size <= _SMALL]
        self.small = [name for name in self.small if name not in self.manifests]
        self.size = sum(size or 0 for size in sizes.values())
        self.is_all = len(own) == len(below)  # otherwise the folder has other files too
        self.has_user_metadata = self.layout is not None and self.layout.has_user_metadata

    def target(
        self, target: str | os.PathLike[str], name: str, options: Mapping[str, Any] | None
    ) -> str | os.PathLike[str]:
        """Return the path to copy to; a local folder gets the name added, unless it is or will be the checkpoint."""
        text = os.fspath(target)
        if not text.endswith("/") and os.path.isdir(text):
            staging = self.staging(Directory(target, options))
            if contents.is_checkpoint_folder(os.listdir(text)) or os.path.isdir(staging):
                return target
        return with_name(target, name)

    def staging(self, target: Directory) -> str:
        """Return the temporary folder beside a local target."""
        path = os.path.realpath(target.path)
        return temporary_path(path, digest(self.root.text, path)[:16])

    def is_same_file(self, target: Directory) -> bool:
        """Return whether the target is a complete copy with the same bytes, user metadata and manifests."""
        held = {*_held(target)}
        if not held.issuperset(self.names) or not self.manifests.issuperset(_manifests(held)):
            return False
        return all(self.is_alike(Location.below(self.root, name), Location.below(target, name)) for name in self.names)

    def is_alike(self, source: Location, goal: Location) -> bool:
        """Return whether one of its files and a copy have the same bytes and user metadata."""
        alike = not self.has_user_metadata or _has_same_user_metadata(source, goal)
        return alike and not source.is_same_file(goal) and same_content(source, goal)

    def remove(self) -> None:
        """Delete the folder, in an order that never makes a part of it look complete."""
        root, first = self.root, [name for name in self.manifests if name != self.manifest]
        target = manage_delete.DeleteTarget(root.text, root, self.names, first, self.size, True, self.layout)
        for error in manage_delete.delete([target]).values():
            raise error
        if root.fs is None:
            for path, _, _ in os.walk(root.path, topdown=False):
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(path)


class FolderCopy:
    """A copy of a checkpoint to another folder; a move also compares all bytes and then deletes the source."""

    def __init__(
        self, source: CheckpointFolder, target: Directory, progress: Callback, *, overwrite: bool, moving: bool
    ) -> None:
        self._source, self._target, self._progress = source, target, progress
        self._overwrite, self._moving = overwrite, moving
        self._local = target.fs is None

    def run(self) -> None:
        """Copy or move the folder.

        Raises:
            CheckpointPathError: if the target is the source, is inside it, or cannot hold the user metadata of a
                Cerebras checkpoint, or if a file name leads out of the target.
            ChecksumError: if a copy differs.
            FileExistsError: if the target has a checkpoint, or a file of one, unless ``overwrite``.
        """
        self._check_places()
        self._held = _held(self._target)
        former = contents.listing_layout(self._held)
        self._own = former.own_files(self._target, self._held) if former else OwnFiles([], [])
        self._check_held()
        if self._own.note:
            logger.warning("%s is replaced, and %s. They stay.", self._target.name, self._own.note)
        if self._moving and self._local and self._renamed():
            return
        self._meter = ProgressMeter(self._progress, self._source.size)
        if self._local:
            self._copy_beside()
        else:
            self._copy_in_place()
        if self._moving:
            self._source.remove()
        self._meter.finish()

    def _check_places(self) -> None:
        source, target = self._source.root, self._target
        name = "x" if source.fs is None else min(self._source.manifests)
        one, other = Location.below(source, name), Location.below(target, name)
        if one.is_same_file(other) or (
            one.fs is None and other.fs is None and other.path.startswith(f"{source.path.rstrip('/')}/")
        ):
            reason = f"{target.name} is the source folder, or inside it."
            raise CheckpointPathError(reason, "Name another target.")
        for name in self._source.names if self._local else ():
            if {".", ".."} & set(name.split("/")) or "\0" in name:
                reason = f"{source.name} has the file {name!r}, which would be outside the folder."
                raise CheckpointPathError(reason, "Do not copy it, and ask its author.")
        if self._source.has_user_metadata and one.is_csx and not other.is_csx:
            reason = f"{target.name} cannot hold the user metadata of the objects of {source.name}."
            raise CheckpointPathError(reason, "Convert it to one file: cszoo checkpoint convert.")

    def _check_held(self) -> None:
        target, names = self._target, {*self._source.names}
        common = names.intersection(self._held)
        if not self._overwrite:
            is_taken = _manifests(self._held) or _rivals(self._held, names) or contents.has_lost_manifest(target)
            if is_taken and not self._is_resumed():
                raise already_exists(target.text)
            if self._local and common:
                raise already_exists(target.path_of(min(common)))
        if self._source.layout and self._would_collide(common):
            msg = f"{target.name} has other files, which the copy would replace. Choose another name."
            raise FileExistsError(msg)

    def _would_collide(self, common: set[str]) -> bool:
        """Return whether objects would replace files below the target, or mix with a checkpoint's files there."""
        layout, own = self._source.layout, self._own.names
        replaces = own and any("/" in name for name in common.difference(own))
        return bool(replaces) or bool(layout and layout.is_below_other(self._held, self._source.names))

    def _is_resumed(self) -> bool:
        """Return whether the target has an interrupted copy of a checkpoint whose manifest lists its files."""
        layout = self._source.layout
        if layout is None or _manifests(self._held) != [layout.manifest]:
            return False
        return layout.is_marked(self._target)

    def _renamed(self) -> bool:
        """Try to move by renaming the folder; return whether that worked."""
        source, target = self._source.root.path, self._target.path
        if self._source.root.fs is not None or os.path.islink(source) or os.path.lexists(target):
            return False
        if not self._source.is_all:
            return False
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            os.rename(source, target)
        except OSError:
            return False  # for instance, the target is on another disk
        return True

    def _copy_in_place(self) -> None:
        """Copy where folders cannot be renamed: delete the old manifest first, and write the new one last."""
        names, held, target, layout = self._source.names, self._held, self._target, self._source.layout
        if layout and (self._overwrite or layout.manifest in held or not {*held} & {*names}):
            layout.mark_unfinished(target, {*names, *self._own.names})
            held = [name for name in held if name != layout.manifest]
        if self._overwrite:
            self._remove_former(held)
        self._copy_files(target, held, overwrite=self._overwrite)

    def _copy_beside(self) -> None:
        """Copy to a folder beside a local target, and rename it when it is complete."""
        target, staging = self._target, Directory(self._source.staging(self._target))
        os.makedirs(staging.path, exist_ok=True)
        self._copy_files(staging, _held(staging), overwrite=True)
        wrong = [name for name in _held(staging, leftovers=True) if name not in self._source.names]
        manage_delete.remove(None, [staging.at(name) for name in wrong])
        if not self._held:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(target.path)  # an empty folder
            os.rename(staging.path, target.path)
            return
        self._remove_former(self._held)
        for name in self._source.names:
            os.makedirs(os.path.dirname(target.at(name)), exist_ok=True)
            publish(staging.at(name), target.at(name), exclusive=not self._overwrite)
        shutil.rmtree(staging.path)

    def _copy_files(self, folder: Directory, held: Collection[str], *, overwrite: bool) -> None:
        """Copy small files in parallel, then large ones one by one, in parallel parts, and manifests last."""
        source = self._source
        there = {*held} - source.manifests

        def copy_one(name: str, advance: Callable[[int], object]) -> None:
            own, goal = Location.below(source.root, name), Location.below(folder, name)
            if name in there:
                if source.is_alike(own, goal):  # an interrupted copy left it
                    advance(own.state()["size"])
                    return
                if not overwrite:
                    raise already_exists(goal.text)
            replaced = overwrite or name == source.manifest
            copy_file(own, goal, advance, overwrite=replaced, verified=self._moving)
            if self._moving and source.has_user_metadata and not _has_same_user_metadata(own, goal):
                reason = f"{goal.display_path} is a copy of {own.display_path}, but lacks its user metadata."
                raise ChecksumError(reason, "Keep the source, or convert it to one file: cszoo checkpoint convert.")

        threads = _AT_A_TIME if source.root.threads and folder.threads else 1
        if source.small:
            run_in_threads(copy_one, source.small, self._meter.advance, threads=threads, name="fsspec_csx-copy")
        together = {*source.small}
        for name in source.names:
            if name == source.manifest:  # another save would reuse the names of objects
                Location.below(source.root, name).check_state(source.state)
            if name not in together:
                copy_one(name, self._meter.advance)

    def _remove_former(self, held: Sequence[str]) -> None:
        """Remove the manifests of the old checkpoint, and then those of its parts that the new one lacks."""
        names, own = self._source.names, {*self._own.names}
        first = [*dict.fromkeys((*_manifests(held), *_rivals(held, names)))]
        kept = {*names, *first}
        parts = [name for name in held if name not in kept and (name in own or _is_own_shard(name))]
        for going in (first, parts):
            for error in manage_delete.remove(self._target.fs, [self._target.at(name) for name in going]).values():
                raise error


def _held(root: Directory, *, leftovers: bool = False) -> list[str]:
    """Return the names of the files below a folder; none if it does not exist."""
    try:
        return [name for name in root.files() if leftovers or not _is_temporary(name)]
    except FileNotFoundError:
        return []


def _check_readable(folder: str) -> None:
    """Raise an OSError for what listings leave out: links to nothing or to folders of shards, unreadable folders."""

    def fail(error: OSError) -> None:
        raise error

    for path, folders, names in os.walk(folder, onerror=fail):
        for name in filter(contents.is_shard_folder, folders):
            if os.path.islink(link := os.path.join(path, name)):
                msg = f"{link} is a link to a folder. Replace it by the folder, so that its shards are copied."
                raise OSError(msg)
        for name in names:
            file = os.path.join(path, name)
            if os.path.islink(file) and not os.path.exists(file):
                msg = f"{file} is a link to a file that does not exist. Restore the file, or delete the link."
                raise FileNotFoundError(msg)


def _is_own_shard(name: str) -> bool:
    """Return whether a file below a checkpoint is its shard, and not one of a checkpoint in a folder below."""
    folder, _, last = name.rpartition("/")
    return contents.is_shard(last) and (not folder or contents.is_shard_folder(folder))


def _manifests(names: Iterable[str]) -> list[str]:
    """Return the manifests directly in a folder, from the names of all files below it."""
    return manifests([name for name in names if "/" not in name])


def _is_temporary(name: str) -> bool:
    return is_temporary(name.rpartition("/")[2])


def _rivals(held: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the files in the target that ``load`` might prefer to the manifest of the new checkpoint."""
    top = [[each for each in those if "/" not in each] for those in (held, names)]
    return [name for layout in layouts() if layout.manifests(top[1]) for name in layout.manifests(top[0])]


def _has_same_user_metadata(one: Location, other: Location) -> bool:
    """Return whether an object has the user metadata of another; True on filesystems without user metadata."""
    stamps = one.stamp(), other.stamp()
    if stamps[0] is None or stamps[1] is None:
        return True
    own, copied = stamps[0].headers.get("Metadata") or {}, stamps[1].headers.get("Metadata") or {}
    return bool(own.items() <= copied.items())  # some stores add some, such as mtime
