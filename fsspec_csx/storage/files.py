"""Finds, opens and measures files on any fsspec filesystem."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.storage.paths import is_local

_CHUNK = 16 * 2**20
# The details of a file that change with its content.
_CHANGING = ("size", "ETag", "LastModified", "mtime", "modified", "updated", "created", "generation")


def resolve_path(
    path: str | os.PathLike[str], text: str, options: Mapping[str, Any] | None
) -> tuple[fsspec.AbstractFileSystem | None, str]:
    """Return the filesystem of a path, None if local, and the path on it; see ``checkpoint_path`` for ``text``."""
    if is_local(path):
        return None, text
    # fsspec changes the options of each link of a chained URL in place.
    own = {key: dict(value) if isinstance(value, dict) else value for key, value in (options or {}).items()}
    fs, inner = fsspec.url_to_fs(text, **own)
    return (None if isinstance(fs, LocalFileSystem) else fs), inner


def unwrap_filesystem(fs: Any, path: str) -> tuple[Any, str, list[tuple[Any, str]]]:
    """Return the filesystem behind caches and ``dir::``, the path on it, and the caches with their own paths.

    Writes bypass a cache, because it publishes a file at close even after an error, and would keep temporary files.
    """
    from fsspec.implementations.cached import CachingFileSystem
    from fsspec.implementations.dirfs import DirFileSystem

    caches = []
    while True:
        if isinstance(fs, CachingFileSystem):
            path = fs._strip_protocol(path)
            caches.append((fs, path))
        elif isinstance(fs, DirFileSystem):
            path = fs._join(path)
        else:
            return fs, path, caches
        fs = fs.fs


def is_csx(fs: Any) -> bool:
    """Return whether a filesystem is the S3 filesystem of this package, which is not imported, as that is slow."""
    return hasattr(fs, "take_file")


def path_exists(fs: fsspec.AbstractFileSystem | None, path: str) -> bool:
    """Return whether a path exists; a local link counts even if its target is missing."""
    if fs is None:
        return os.path.lexists(path)
    invalidate_listings(fs, path)
    return bool(fs.exists(path))


def open_file(fs: fsspec.AbstractFileSystem | None, path: str) -> IO[bytes]:
    """Open the current version of a file for reading."""
    if fs is None:
        return open(path, "rb")
    invalidate_listings(fs, path)
    file: IO[bytes] = fs.open(path, "rb")
    return file


def file_size(file: IO[bytes]) -> int:
    """Return the size of a file in bytes; leave the file at its start."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    return size


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the rest of a file, 16 MiB at a time."""
    while chunk := file.read(_CHUNK):
        yield chunk


def checksum_of(file: IO[bytes], compute: Callable[[memoryview, int], int]) -> int:
    """Return the checksum of the rest of a file; ``compute`` continues one with more bytes."""
    checksum = 0
    for chunk in chunks(file):
        checksum = compute(memoryview(chunk), checksum)
    return checksum


def file_state(fs: fsspec.AbstractFileSystem | None, path: str) -> dict[str, Any]:
    """Return the details of a file that change with its content, with its ``size`` in bytes.

    Raises an IsADirectoryError for a folder.
    """
    if fs is None:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return {"size": status.st_size, "mtime": status.st_mtime_ns, "file": (status.st_dev, status.st_ino)}
    invalidate_listings(fs, path)
    info = fs.info(path)
    if info["type"] == "directory":
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return {name: info[name] for name in _CHANGING if name in info}


def invalidate_listings(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Drop cached listings, because another process may have written the file."""
    fs.invalidate_cache(path)
    fs.invalidate_cache(fs._parent(path))
