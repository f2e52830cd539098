"""Folder: the folder of a checkpoint of many files, on any filesystem."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import open_file, path_exists, unwrap_filesystem

logger = logging.getLogger("fsspec_csx")


class Folder:
    """A folder on a filesystem, None for the local one; ``name`` is what errors call it."""

    def __init__(self, fs: AbstractFileSystem | None, path: str, name: str) -> None:
        self.fs: Any = fs
        self.path = path.rstrip("/") or "/"
        self.name = name

    @property
    def threads(self) -> bool:
        """Whether several threads can read and write its files at once."""
        fs = unwrap_filesystem(self.fs, self.path)[0]
        return fs is None or isinstance(fs, LocalFileSystem) or bool(getattr(fs, "async_impl", False))

    def at(self, name: str) -> str:
        """Return the path of a file in it; its own path for an empty name."""
        return f"{self.path.rstrip('/')}/{name}" if name else self.path

    def open(self, name: str) -> IO[bytes]:
        """Open the current version of a file for reading."""
        return open_file(self.fs, self.at(name))

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for a block; subclasses may keep it open for the next one."""
        with self.open(name) as file:
            yield file

    def exists(self, name: str) -> bool:
        """Return whether the file exists now."""
        return path_exists(self.fs, self.at(name))

    def names(self) -> list[str]:
        """List the names of the files and folders directly in it."""
        self.forget()
        found = os.listdir(self.path) if self.fs is None else self.fs.ls(self.path, detail=False)
        return [path.rstrip("/").rpartition("/")[2] for path in found]

    def forget(self) -> None:
        """Drop cached listings, because other processes write to the folder."""
        if self.fs is not None:
            self.fs.invalidate_cache()

    def atomic_write(self, name: str) -> Any:
        """Open a file for writing, see ``storage.atomic.atomic_write``."""
        return atomic_write(self.fs, self.at(name))

    @contextlib.contextmanager
    def creating(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file with a unique name for writing; remove it if the block ends with an exception."""
        fs, path, _ = unwrap_filesystem(self.fs, self.at(name))
        if fs is None or isinstance(fs, LocalFileSystem) or getattr(fs, "atomic_writes", False):
            with atomic_write(self.fs, self.at(name)) as file:
                yield file
            return
        # No temporary name is needed before the manifest names the file; a rename would copy it.
        with contextlib.suppress(PermissionError):
            fs.makedirs(fs._parent(path), exist_ok=True)
        try:
            with fs.open(path, "wb") as file:
                yield file
        except BaseException:
            self.remove([name])
            raise

    def remove(self, names: Iterable[str]) -> None:
        """Remove files; failures are only logged, because nothing depends on these files."""
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
