"""Files that replace an old one only when they are whole."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.storage.files import unwrap_filesystem
from fsspec_csx.storage.local_file import add_filename, check_writable, publish, temporary_path

logger = logging.getLogger("fsspec_csx")

_BUFFER = 128 * 1024
# What filesystems answer that cannot sync a folder, or may not open one.
_NO_FOLDER_SYNC = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}


@contextlib.contextmanager
def atomic_write(fs: AbstractFileSystem | None, path: str, *, exclusive: bool = False) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of ``path`` when the block ends without an exception.

    If it ends with one, of any kind, what was at ``path`` is untouched and nothing is left beside it. A process that
    is killed may leave a file named ``.NAME.*.tmp`` there.

    Args:
        fs: the filesystem, or None for this machine's own. One with a true attribute ``atomic_writes`` promises to
            discard a file whose ``with`` block is left by an exception, and is written to directly. On others a
            temporary file beside ``path`` is moved into place.
        path: the path on it; missing folders are made.
        exclusive: whether there must be no file yet, on this machine and where ``atomic_writes``; others cannot tell.

    Raises:
        FileExistsError: if ``exclusive`` and there is one by the end of the block.
        IsADirectoryError: if there is a folder at the path.
        PermissionError: if the file there is write-protected.
        OSError: if all of its filesystem is.
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


# -- this machine ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _write_local(path: str, exclusive: bool) -> Iterator[IO[bytes]]:
    status = _status(path)
    if status is not None and not stat.S_ISREG(status.st_mode):
        # A device or a FIFO is written to; a folder makes open() raise.
        with open(path, "wb", _BUFFER) as special:
            yield special
        return
    target = os.path.realpath(path)  # a link stays, and what it points to is replaced
    if status is not None:
        check_writable(target, path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = temporary_path(target, secrets.token_hex(8))
    file = None
    try:
        file = _create(temporary, status)
        yield file
        file.flush()
        os.fsync(file.fileno())
        file.close()
        publish(temporary, target, exclusive=exclusive)
    except BaseException as error:
        if file is not None:
            file.raw.close()  # file.close() would write what is still buffered, and may fail at it
        _clean_up(temporary, lambda: os.unlink(temporary))
        add_filename(error, target)
        raise
    _sync_folder(os.path.dirname(target))


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _create(path: str, like: os.stat_result | None) -> Any:
    """A new file with the mode and owner of the one that it will replace; for a first one the umask decides."""
    mode = 0o666 if like is None else stat.S_IMODE(like.st_mode)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, mode)
    try:
        if like is not None and hasattr(os, "fchmod"):
            made = os.fstat(descriptor)
            if (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(descriptor, like.st_uid, like.st_gid)
            os.fchmod(descriptor, mode)
        return open(descriptor, "wb", _BUFFER)
    except BaseException:
        os.close(descriptor)
        raise


def _sync_folder(folder: str) -> None:
    """Make the renaming last through a power failure."""
    if not hasattr(os, "O_DIRECTORY"):
        return
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
    with contextlib.suppress(PermissionError):  # as fsspec.open: there may be no need to make any
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
            _clean_up(temporary, file.close)
            _clean_up(temporary, lambda: fs.rm_file(temporary))
        raise


def _move(fs: AbstractFileSystem, source: str, target: str) -> None:
    if getattr(fs.mv, "__func__", None) is AbstractFileSystem.mv:
        # It copies and deletes as well, but takes '*', '?' and '[' in a name for a pattern.
        fs.cp_file(source, target)
        fs.rm_file(source)
        return
    fs.mv(source, target)
    if fs.exists(source):
        # Some report a refused renaming only in an answer that fsspec does not look at.
        msg = f"{source!r} was not moved to {target!r}. Check that the filesystem lets files be replaced."
        raise OSError(msg)


def _clean_up(path: str, step: Callable[[], object]) -> None:
    """One step after a failure, which must not be hidden by another one."""
    try:
        step()
    except FileNotFoundError:
        pass
    except Exception as error:
        logger.warning("Cleaning up the temporary file %s failed: %s", path, error)


def _forget(cache: Any, path: str) -> None:
    """Drop a cache's copy of a file that was just replaced."""
    from fsspec.implementations.cached import SimpleCacheFileSystem

    if not isinstance(cache, SimpleCacheFileSystem):
        cache.pop_from_cache(path)
    elif copy := cache._check_file(path):
        os.unlink(copy)
