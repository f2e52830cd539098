"""Folder: where the files of a sharded checkpoint lie, on any filesystem."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import secrets
from collections.abc import Iterable

from fsspec_csx.storage import folder
from fsspec_csx.storage.folder import logger

__all__ = ["MANIFEST", "MOST_PREFIXES", "SHARD", "Folder", "has_shards", "is_prefix", "logger", "shard_name"]

MANIFEST = ".metadata"
"""The file that makes a folder a checkpoint, by the name that torch gives it."""

_SUFFIX = ".distcp"
SHARD = re.compile(r"__\d+_\d+\.[0-9a-f]{16}\.distcp")
"""The name of a shard that this package has written, without the folder of its prefix."""
MOST_PREFIXES = 4096
"""Over how many folders, in that of the checkpoint, its shards may be spread."""


def shard_name(rank: int, prefix_count: int = 0) -> str:
    """A name for a shard that no other has, of any save; with prefixes, in a folder of hashed name."""
    name = f"__{rank}_0.{secrets.token_hex(8)}.distcp"
    if not prefix_count:
        return name
    return f"{_prefix(rank % prefix_count)}/{name}"


def is_prefix(name: str) -> bool:
    """Whether a folder holds shards of the one that it is in, by its name: a step or a date of eight digits is none."""
    return name in _prefixes()


@functools.cache
def _prefixes() -> frozenset[str]:
    return frozenset(map(_prefix, range(MOST_PREFIXES)))


def _prefix(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:8]


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
        for prefix in filter(is_prefix, names):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                below = Folder(self.fs, self.at(prefix), self.name).names()
                found += [f"{prefix}/{name}" for name in below if SHARD.fullmatch(name)]
        return sorted(found)
