"""LocalDisk: the copies of a run's checkpoints on a disk of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from fsspec_csx.checkpoint.async_save import async_save, upload_left
from fsspec_csx.checkpoint.local_tier import LocalTier, check_local, find, tier_of
from fsspec_csx.checkpoint.save_future import SaveFuture
from fsspec_csx.trainer import checkpoint_root


class LocalDisk:
    """The copies of the checkpoints of a root.

    Args:
        folder: the folder on the local disk.
        keep: how many to keep.

    Attributes:
        root: the folder of the checkpoints themselves.

    Raises:
        ValueError: for an invalid folder or number.
    """

    def __init__(self, folder: str, keep: int) -> None:
        check_local(folder, keep)
        self.root = ""
        self._folder = os.path.abspath(folder)  # the program may change its folder
        self._keep = keep

    @cached_property
    def _tier(self) -> LocalTier:
        tier, _ = tier_of(checkpoint_root.join(self.root, "checkpoint"), self._folder)
        tier.keep = self._keep
        return tier

    def save(self, saved: Any, path: str) -> SaveFuture:
        """Save a checkpoint; see ``async_save``."""
        return async_save(saved, path, local=self._folder, keep_local=self._keep)

    def pending(self) -> list[str]:
        """The names of the checkpoints that are not uploaded."""
        return self._tier.pending()

    def find(self, path: str) -> str:
        """The path to read a checkpoint from: that of its copy, if there is a good one."""
        try:
            return find(path, self._folder)
        except OSError:  # of the filesystem of the root, which raises it again when it is read from
            return path

    def delete(self, name: str) -> None:
        """Delete a copy, if it exists."""
        self._tier.delete(name)

    def upload_left(self, order: Callable[[str], tuple[int, str, str]]) -> Iterator[tuple[str, SaveFuture]]:
        """Upload in the background what earlier processes did not, and what is newer than all at the root.

        Args:
            order: by which to sort names, with a step below 0 for those that are none of checkpoints.

        Yields:
            The path and the save of each checkpoint, the newest last.
        """
        self._tier.resumed = False
        left = self._tier.take_left()
        newest = max(map(order, checkpoint_root.list_names(self.root) if left else ()), default=(-1, "", ""))
        for name in left:
            if order(name) > max(newest, (0, "", "")):
                path = checkpoint_root.join(self.root, name)
                yield path, upload_left(path, self._folder)
