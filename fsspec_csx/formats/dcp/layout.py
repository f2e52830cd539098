"""The layout of sharded checkpoints: a manifest, and shards in the folder or in its prefix folders."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from fsspec_csx.errors import InvalidCheckpointError, few
from fsspec_csx.formats.folder_layout import REMEDY, FolderLayout, incomplete
from fsspec_csx.storage.folder import Folder

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


class ShardedFolder(Folder):
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


class DistributedLayout(FolderLayout):
    """Folders of torch.distributed.checkpoint."""

    manifest = MANIFEST

    def is_unfinished(self, names: Collection[str]) -> bool:
        return any(SUFFIX in name for name in names)

    def is_shard(self, name: str) -> bool:
        return name.endswith(SUFFIX) and name != SUFFIX

    def is_shard_folder(self, name: str) -> bool:
        return is_prefix(name)

    def is_leftover(self, name: str, *, shared: bool) -> bool:
        return bool(SHARD.fullmatch(name)) or (not shared and self.is_shard(name))

    def check_complete(
        self, folder: Folder, sizes: Mapping[str, int | None], below: Callable[[], Mapping[str, int | None]]
    ) -> None:
        """Check that the shards that the manifest names exist and are long enough."""
        if MANIFEST not in sizes:
            return
        ends = _ends(folder)
        held = below() if any("/" in name for name in ends) else sizes
        if missing := sorted(name for name in ends if name not in held):
            raise incomplete(folder.name, missing, "its manifest names")
        if short := sorted(name for name, end in ends.items() if (size := held[name]) is not None and size < end):
            reason = f"{folder.name} is incomplete: {few(short)} {'is' if len(short) == 1 else 'are'} truncated."
            raise InvalidCheckpointError(reason, REMEDY)

    def unnamed(self, folder: Folder, names: Collection[str]) -> set[str]:
        shards = {name for name in names if SHARD.fullmatch(name.rpartition("/")[2])}
        return shards - _ends(folder).keys() if shards and MANIFEST in names else set()


def _ends(folder: Folder) -> dict[str, int]:
    """Return the shards that the manifest names, each with the least size that it must have."""
    from fsspec_csx.formats.dcp import manifest  # only here, as it imports torch

    ends: dict[str, int] = defaultdict(int)
    for place in manifest.read(ShardedFolder(folder.fs, folder.path, folder.name)).storage_data.values():
        ends[place.relative_path] = max(ends[place.relative_path], place.offset + place.length)
    return ends


LAYOUT = DistributedLayout()
