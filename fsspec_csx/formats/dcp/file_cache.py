"""FileCache: a folder that keeps files open between reads, so that each is opened once, in one version."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO

from fsspec_csx.formats.dcp.folder import ShardedFolder

_MOST = 64


class FileCache(ShardedFolder):
    """A folder that keeps the most recently read files open until ``close``."""

    def __init__(self, folder: ShardedFolder) -> None:
        super().__init__(folder.fs, folder.path, folder.name)
        self._kept: dict[str, IO[bytes]] = {}

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for one user at a time."""
        file = self._kept.pop(name, None) or self.open(name)
        try:
            yield file
        except BaseException:
            file.close()
            raise
        if other := self._kept.pop(name, None):
            other.close()
        self._kept[name] = file
        while len(self._kept) > _MOST:
            self._close(next(iter(self._kept)))

    def close(self) -> None:
        """Close all files."""
        for name in [*self._kept]:
            self._close(name)

    def _close(self, name: str) -> None:
        if file := self._kept.pop(name, None):
            file.close()
