"""Folder: where the files of a sharded checkpoint lie, on any filesystem."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Iterable

from fsspec_csx.storage import folder
from fsspec_csx.storage.folder import logger

__all__ = ["MANIFEST", "PREFIX", "SHARD", "Folder", "has_shards", "logger", "shard_name"]

MANIFEST = ".metadata"
"""The file that makes a folder a checkpoint, by the name that torch gives it."""

_SUFFIX = ".distcp"
SHARD = re.compile(r"__\d+_\d+\.[0-9a-f]{16}\.distcp")
"""The name of a shard that this package has written, without the folder of its prefix."""
PREFIX = re.compile(r"[0-9a-f]{8}")
"""The name of a folder of shards, in that of the checkpoint."""


def shard_name(rank: int, prefix_count: int = 0) -> str:
    """A name for a shard that no other has, of any save; with prefixes, in a folder of hashed name."""
    name = f"__{rank}_0.{secrets.token_hex(8)}.distcp"
    if not prefix_count:
        return name
    return f"{hashlib.sha256(str(rank % prefix_count).encode()).hexdigest()[:8]}/{name}"


def has_shards(names: Iterable[str]) -> bool:
    """Whether shards are among these files, complete or not."""
    return any(_SUFFIX in name for name in names)


class Folder(folder.Folder):
    """A folder of shards and a manifest."""

    def shards(self) -> list[str]:
        """The names of the shards in it, whether the manifest names them or not."""
        try:
            names = self.names()
        except FileNotFoundError:
            return []
        found = [name for name in names if SHARD.fullmatch(name)]
        for prefix in filter(PREFIX.fullmatch, names):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                below = Folder(self.fs, self.at(prefix), self.name).names()
                found += [f"{prefix}/{name}" for name in below if SHARD.fullmatch(name)]
        return sorted(found)
