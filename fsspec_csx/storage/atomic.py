"""Writes files on any filesystem that replace the old one only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
from collections.abc import Iterator
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.storage.files import unwrap_filesystem
from fsspec_csx.storage.local_file import atomic_local_write, clean_up, temporary_path

_BUFFER = 128 * 1024
# Errors of filesystems that cannot sync a folder, or may not open it.
_NO_FOLDER_SYNC = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}


@contextlib.contextmanager
def atomic_write(fs: AbstractFileSystem | None, path: str, *, exclusive: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that replaces ``path`` when the block ends without an exception.

    After an exception, ``path`` is untouched, with nothing left beside it. A killed process may leave ``.NAME.*.tmp``.

    Args:
        fs: the filesystem, or None for the local one. A filesystem with a true attribute ``atomic_writes`` discards a
            file if an exception leaves its ``with`` block, so it is written directly. On others a temporary file beside
            ``path`` is renamed.
        path: the path on it; missing folders are created.
        exclusive: whether to raise FileExistsError instead of replacing a file; only for local files and with
            ``atomic_writes``.

    Raises:
        FileExistsError: if ``exclusive`` and the file exists at the end of the block.
        IsADirectoryError: if the path is a folder.
        PermissionError: if the file is write-protected.
        OSError: if the filesystem is read-only.
    """
    fs, path, caches = unwrap_filesystem(fs, path)
    if fs is None or isinstance(fs, LocalFileSystem):
        opened = _write_local(path, exclusive)
    elif getattr(fs, "atomic_writes", False):
        opened = fs.open(path, "xb" if exclusive else "wb")
    else:
        opened = _write_remote(fs, path)
    with opened as file:
        yield file
    for cache, cached in caches:
        _forget(cache, cached)


# -- local -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _write_local(path: str, exclusive: bool) -> Iterator[IO[bytes]]:
    if _is_special(path):  # write to a device or a FIFO; for a folder, open() raises
        with open(path, "wb", _BUFFER) as special:
            yield special
        return
    target = os.path.realpath(path)  # once: links to folders may change during a save
    folder = os.path.dirname(target)
    os.makedirs(folder, exist_ok=True)
    with atomic_local_write(target, exclusive=exclusive) as descriptor:
        file = io.BufferedWriter(io.FileIO(descriptor, "wb", closefd=False), _BUFFER)
        try:
            yield file
            file.flush()
            os.fsync(descriptor)
        finally:
            file.raw.close()  # after an error, file.close() would write its buffer and might fail
    _sync_folder(folder)


def _is_special(path: str) -> bool:
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def _sync_folder(folder: str) -> None:
    """Make the rename survive a power failure."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


# -- other filesystems -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _write_remote(fs: AbstractFileSystem, path: str) -> Iterator[IO[bytes]]:
    if fs.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    with contextlib.suppress(PermissionError):  # as in fsspec.open: the folder may exist
        fs.makedirs(fs._parent(path), exist_ok=True)
    temporary = temporary_path(path, secrets.token_hex(8))
    file = None
    try:
        file = fs.open(temporary, "wb")
        yield file
        file.close()
        _move(fs, temporary, path)
    except BaseException:
        if file is not None:
            clean_up(temporary, file.close)
            clean_up(temporary, lambda: fs.rm_file(temporary))
        raise


def _move(fs: AbstractFileSystem, source: str, target: str) -> None:
    if getattr(fs.mv, "__func__", None) is AbstractFileSystem.mv:
        # This default also copies and deletes, but expands '*', '?' and '[' in names.
        fs.cp_file(source, target)
        fs.rm_file(source)
        return
    fs.mv(source, target)
    if fs.exists(source):
        # Some report a refused rename only in a response that fsspec ignores.
        msg = f"{source!r} was not moved to {target!r}. Check that the filesystem lets files be replaced."
        raise OSError(msg)


def _forget(cache: Any, path: str) -> None:
    """Remove a replaced file from a cache."""
    from fsspec.implementations.cached import SimpleCacheFileSystem

    if not isinstance(cache, SimpleCacheFileSystem):
        cache.pop_from_cache(path)
    elif not hasattr(cache, "_check_file"):
        cache.clear_cache()
    elif copy := cache._check_file(path):
        os.unlink(copy)
