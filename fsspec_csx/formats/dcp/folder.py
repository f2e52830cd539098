"""ShardedFolder: the folder of a sharded checkpoint, on any filesystem."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import secrets

from fsspec_csx.storage import folder

MANIFEST = ".metadata"
"""The manifest, under torch's name; it makes a folder a checkpoint."""

SUFFIX = ".distcp"
SHARD = re.compile(r"__\d+_\d+\.[0-9a-f]{16}\.distcp")
"""The name of a shard that this package has written, without its prefix folder."""
MOST_PREFIXES = 4096
"""The most prefix folders over which the shards of a checkpoint may be spread."""


def shard_name(rank: int, prefix_count: int = 0) -> str:
    """Return a unique name for a shard; with prefixes, in a folder with a hashed name."""
    name = f"__{rank}_0.{secrets.token_hex(8)}.distcp"
    if not prefix_count:
        return name
    return f"{_prefix(rank % prefix_count)}/{name}"


def is_prefix(name: str) -> bool:
    """Return whether a name is that of a prefix folder. Eight digits, such as a date, are not."""
    return name in _prefixes()


@functools.cache
def _prefixes() -> frozenset[str]:
    return frozenset(map(_prefix, range(MOST_PREFIXES)))


def _prefix(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:8]


class ShardedFolder(folder.Folder):
    """A folder of shards and a manifest."""

    def shards(self) -> list[str]:
        """List the shards in it, including those that the manifest does not name."""
        try:
            names = self.names()
        except FileNotFoundError:
            return []
        found = [name for name in names if SHARD.fullmatch(name)]
        for prefix in filter(is_prefix, names):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                below = ShardedFolder(self.fs, self.at(prefix), self.name).names()
                found += [f"{prefix}/{name}" for name in below if SHARD.fullmatch(name)]
        return sorted(found)
