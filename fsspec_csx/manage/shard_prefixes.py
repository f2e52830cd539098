"""The folders of hashed prefixes in a sharded checkpoint, over which a save of many ranks spreads its shards."""

from __future__ import annotations

from collections.abc import Iterable

from fsspec_csx.formats.dcp.folder import SHARD, is_prefix
from fsspec_csx.manage.directory import Directory, File, map_parallel


def checkpoint_of(folder: str) -> str | None:
    """The folder whose prefix a folder is by its name; None if it is none. Both end with a slash, but for the root."""
    parent, _, last = folder.rstrip("/").rpartition("/")
    if not is_prefix(last):
        return None
    return f"{parent}/" if parent else ""


def shards_in(root: Directory, folders: Iterable[str]) -> list[File]:
    """The shards in those of these folders that are prefixes by their names."""
    prefixes = [each for each in folders if checkpoint_of(each) is not None]
    found = map_parallel(root.fs, lambda each: root.scan(each)[0], prefixes)
    return [file for files in found for file in files if SHARD.fullmatch(file.base)]
