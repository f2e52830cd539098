"""Writes files on any filesystem that replace the old one only when they are complete."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.errors import text_of
from fsspec_csx.storage.files import unwrap_filesystem

logger = logging.getLogger("fsspec_csx")

_BUFFER = 128 * 1024
# Errors of filesystems that cannot sync a folder, or may not open it.
_NO_FOLDER_SYNC = {errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}
_NAME_MAX = 255
_TEMPORARY = re.compile(r".*\.[0-9a-f]{16}\.tmp", re.DOTALL)
# Errors of a full filesystem or an exceeded quota.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of filesystems without hard links.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}


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


@contextlib.contextmanager
def atomic_local_write(path: str, *, exclusive: bool = False) -> Iterator[int]:
    """Yield the descriptor of a file that replaces ``path`` when the block ends without an exception.

    The folder must exist. With ``exclusive``, raise a FileExistsError instead of replacing a file.
    """
    target, mode = resolve_target(path)
    temporary = temporary_path(target, secrets.token_hex(8))
    try:
        descriptor = _create(temporary, target, mode)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        publish(temporary, target, exclusive=exclusive)
    except BaseException as error:
        if os.path.lexists(temporary):
            clean_up(temporary, lambda: os.unlink(temporary))
        add_filename(error, target, temporary)
        raise


def write_at(descriptor: int, memory: memoryview, position: int) -> None:
    """Write all of a buffer at a position; one system call may write only a part."""
    while memory:
        written = os.pwrite(descriptor, memory, position)
        memory, position = memory[written:], position + written


def _create(path: str, target: str, mode: int | None) -> int:
    """Create a file with the mode and owner of ``target``; if it does not exist (mode None), the umask decides."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    try:
        if mode is not None:
            former, made = os.stat(target), os.fstat(descriptor)
            if (made.st_uid, made.st_gid) != (former.st_uid, former.st_gid):
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(descriptor, former.st_uid, former.st_gid)
            os.fchmod(descriptor, mode)  # the umask may have cleared some bits
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def add_filename(error: BaseException, path: str, temporary: str | None = None) -> None:
    """Name ``path`` in an error about its temporary file, or its folder if the filesystem is full."""
    if isinstance(error, OSError) and error.filename in (None, temporary) and error.filename2 is None:
        if error.errno in _FULL:
            error.filename = os.path.dirname(path)
        elif error.filename is not None:
            error.filename = path


def resolve_target(path: str) -> tuple[str, int | None]:
    """Return the file to replace, after links, and its mode; the mode is None if the file does not exist.

    Raises:
        PermissionError: if the file is write-protected; a rename would replace it nevertheless.
    """
    target = os.path.join("" if os.path.isabs(path) else os.getcwd(), path)  # realpath would take much longer
    try:
        mode = os.lstat(target).st_mode
        if stat.S_ISLNK(mode):
            target = os.path.realpath(target)
            mode = os.stat(target).st_mode
    except FileNotFoundError:
        return target, None
    if not os.access(target, os.W_OK):
        number = errno.EROFS if os.statvfs(target).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), path)
    return target, stat.S_IMODE(mode)


def publish(temporary: str, target: str, *, exclusive: bool) -> None:
    """Rename a complete file; with ``exclusive``, raise a FileExistsError if the name is taken."""
    if exclusive:
        try:
            os.link(temporary, target)
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            if error.errno not in _NO_LINKS or os.path.lexists(target):
                raise
        else:
            os.unlink(temporary)
            return
    os.replace(temporary, target)


def temporary_path(path: str, token: str) -> str:
    """Return the temporary path of a file until it is complete."""
    folder, separator, name = path.rpartition("/")
    temporary = f".{name}.{token}.tmp"
    if len(os.fsencode(temporary)) > _NAME_MAX:
        temporary = f".{token}.tmp"
    return f"{folder}{separator}{temporary}"


def is_temporary(name: str) -> bool:
    """Return whether a file name, without folders, is that of a temporary file, which is incomplete."""
    return _TEMPORARY.fullmatch(name) is not None


def clean_up(path: str, step: Callable[[], object]) -> None:
    """Run a cleanup after a failure; if it fails too, log that, and keep the first error."""
    try:
        step()
    except FileNotFoundError:
        pass
    except Exception as error:
        logger.warning("Cleaning up the temporary file %s failed: %s", path, text_of(error))


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
