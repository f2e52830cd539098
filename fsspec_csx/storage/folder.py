"""Folder: where the files of a checkpoint of many files lie, on any filesystem."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import open_file, unwrap_filesystem

logger = logging.getLogger("fsspec_csx")


class Folder:
    """A folder on a filesystem, None for the local one; ``name`` is what errors call it."""

    def __init__(self, fs: AbstractFileSystem | None, path: str, name: str) -> None:
        self.fs = fs
        self.path = path.rstrip("/")
        self.name = name

    @property
    def threads(self) -> bool:
        """Whether its files can be read and written in several threads at once."""
        fs = unwrap_filesystem(self.fs, self.path)[0]
        return fs is None or isinstance(fs, LocalFileSystem) or bool(getattr(fs, "async_impl", False))

    def at(self, name: str) -> str:
        """The path of a file in it."""
        return f"{self.path}/{name}"

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading, in its present state."""
        return open_file(self.fs, self.at(name))

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """A file, see ``open``, while the block lasts; subclasses may keep it open for the next one."""
        with self.open(name) as file:
            yield file

    def exists(self, name: str) -> bool:
        """Whether there is such a file now."""
        self.forget()
        return os.path.exists(self.at(name)) if self.fs is None else bool(self.fs.exists(self.at(name)))

    def names(self) -> list[str]:
        """The names of the files and folders directly in it."""
        self.forget()
        found = os.listdir(self.path) if self.fs is None else self.fs.ls(self.path, detail=False)
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def forget(self) -> None:
        """Drop cached listings: other processes write to the folder."""
        if invalidate := getattr(self.fs, "invalidate_cache", None):
            invalidate()

    def atomic_write(self, name: str) -> Any:
        """A file to write to, as ``storage.atomic.atomic_write`` gives it."""
        return atomic_write(self.fs, self.at(name))

    @contextlib.contextmanager
    def creating(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write to, of a name that no other has; it is removed if the block ends with an exception."""
        fs, path, _ = unwrap_filesystem(self.fs, self.at(name))
        if fs is None or isinstance(fs, LocalFileSystem) or getattr(fs, "atomic_writes", False):
            with atomic_write(self.fs, self.at(name)) as file:
                yield file
            return
        # Nobody looks for it before the manifest names it: to move it into place would copy it for nothing.
        with contextlib.suppress(PermissionError):
            fs.makedirs(fs._parent(path), exist_ok=True)
        try:
            with fs.open(path, "wb") as file:
                yield file
        except BaseException:
            self.remove([name])
            raise

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; failures are logged, as nothing depends on these files."""
        for name in names:
            try:
                os.unlink(self.at(name)) if self.fs is None else self.fs.rm_file(self.at(name))
                if self.fs is None and "/" in name:
                    with contextlib.suppress(OSError):  # not empty
                        os.rmdir(os.path.dirname(self.at(name)))
            except FileNotFoundError:
                pass
            except Exception as error:
                logger.warning("The file %s of %s could not be removed: %s", name, self.name, error)
