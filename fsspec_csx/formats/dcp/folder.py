"""Folder: where the files of a sharded checkpoint lie, on any filesystem."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

from fsspec_csx.storage import folder
from fsspec_csx.storage.folder import logger

__all__ = ["MANIFEST", "SHARD", "Folder", "has_shards", "logger", "shard_name"]

MANIFEST = ".metadata"
"""The file that makes a folder a checkpoint, by the name that torch gives it."""

_SUFFIX = ".distcp"
SHARD = re.compile(r"__\d+_\d+\.[0-9a-f]{16}\.distcp")
"""The name of a shard that this package has written."""


def shard_name(rank: int) -> str:
    """A name for a shard that no other has, of any save."""
    return f"__{rank}_0.{secrets.token_hex(8)}.distcp"


def has_shards(names: Iterable[str]) -> bool:
    """Whether shards are among these files, complete or not."""
    return any(_SUFFIX in name for name in names)


class Folder(folder.Folder):
    """A folder of shards and a manifest."""

    def shards(self) -> list[str]:
        """The names of the shards in it, whether the manifest names them or not."""
        try:
            return sorted(name for name in self.names() if SHARD.fullmatch(name))
        except FileNotFoundError:
            return []
