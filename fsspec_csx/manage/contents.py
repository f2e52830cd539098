"""Which files of a folder belong to a checkpoint; the formats decide this by the names of the files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable

from fsspec_csx.formats.folder_layout import FolderLayout
from fsspec_csx.formats.registry import SUFFIXES, layouts, manifests
from fsspec_csx.manage.directory import Directory, File
from fsspec_csx.storage.threads import map_parallel


def is_checkpoint(name: str) -> bool:
    """Return whether a file name (without folders) is that of a checkpoint."""
    return name.endswith(SUFFIXES) and not is_shard(name)


def is_shard(name: str) -> bool:
    """Return whether a file name is that of a shard, which is useless alone."""
    return any(layout.is_shard(name) for layout in layouts())


def is_index(name: str) -> bool:
    """Return whether ``load`` takes the path of a file of this name for its folder."""
    return any(layout.is_index(name) for layout in layouts())


def is_checkpoint_folder(names: Iterable[str]) -> bool:
    """Return whether a folder with these files is a checkpoint."""
    return bool(manifests([*names]))


def is_loadable(names: Iterable[str]) -> bool:
    """Return whether ``load`` reads a folder with these files as one checkpoint."""
    names = {*names}
    return any(layout.is_loadable(names) for layout in layouts())


def listing_layout(names: Collection[str]) -> FolderLayout | None:
    """Return the layout of the format whose manifest is among these files and lists its files, if there is one."""
    return next((each for each in layouts() if each.lists_files and each.manifest in names), None)


def is_shard_folder(name: str) -> bool:
    """Return whether a folder of this name in a checkpoint holds its shards; a save of many ranks can spread them."""
    return any(layout.is_shard_folder(name) for layout in layouts())


def shards_in(root: Directory, folders: Iterable[str]) -> list[File]:
    """Return the shards of this package in those folders that may hold shards of a checkpoint."""
    places = [each for each in folders if is_shard_folder(each.rstrip("/").rpartition("/")[2])]
    found = map_parallel(root.fs, lambda each: root.scan(each)[0], places)
    return [file for files in found for file in files if is_leftover(file.base, shared=True)]


def is_leftover(name: str, *, shared: bool) -> bool:
    """Return whether a shard of this name may be deleted if no manifest names it; see ``FolderLayout``."""
    return any(layout.is_leftover(name, shared=shared) for layout in layouts())


def has_lost_manifest(root: Directory, folder: str = "") -> bool:
    """Return whether a link that cannot be followed now may be the manifest of the shards in a folder."""
    if root.fs is not None:
        return False
    place = root.at(folder.rstrip("/"))
    above, _, last = place.rpartition("/")
    with contextlib.suppress(FileNotFoundError):  # there is no such folder, or no longer
        entries = [
            entry for each in (place, above if is_shard_folder(last) else "") if each for entry in os.scandir(each)
        ]
        return any(entry.is_symlink() and manifests([entry.name]) and not os.path.exists(entry) for entry in entries)
    return False
