"""Local files that are replaced only when the new one is complete."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterator

logger = logging.getLogger("fsspec_csx")

_NAME_MAX = 255
# Errors of filesystems without room, or without room for this user.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of filesystems without hard links.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}


@contextlib.contextmanager
def atomic_local_write(path: str, *, exclusive: bool = False) -> Iterator[int]:
    """Give the descriptor of a file that takes the place of ``path`` when the block ends without an exception.

    Its folder exists. With ``exclusive`` a FileExistsError, instead of replacing a file.
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
        clean_up(temporary, lambda: os.unlink(temporary))
        add_filename(error, target)
        raise


def write_at(descriptor: int, memory: memoryview, position: int) -> None:
    """Write all of a memory at a position of a file; the system may take less of it at a time."""
    while memory:
        written = os.pwrite(descriptor, memory, position)
        memory, position = memory[written:], position + written


def _create(path: str, target: str, mode: int | None) -> int:
    """A new file with the mode and owner of ``target``; if there is none yet (mode None), the umask decides."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666 if mode is None else mode)
    try:
        if mode is not None and hasattr(os, "fchmod"):
            former, made = os.stat(target), os.fstat(descriptor)
            if (made.st_uid, made.st_gid) != (former.st_uid, former.st_gid):
                with contextlib.suppress(PermissionError):  # only root may give files away
                    os.fchown(descriptor, former.st_uid, former.st_gid)
            os.fchmod(descriptor, mode)  # the umask may have cleared some bits
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def add_filename(error: BaseException, path: str) -> None:
    """If a filesystem is full, name the folder in the error: the system's message does not."""
    if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
        error.filename = os.path.dirname(path)


def resolve_target(path: str) -> tuple[str, int | None]:
    """The file to replace, the one that ``path`` links to if it is a link, and its mode; None if there is no file yet.

    A PermissionError if the file is write-protected: renaming alone would replace it.
    """
    target = os.path.realpath(path)
    if not os.path.exists(target):
        return target, None
    if not os.access(target, os.W_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(target).f_flag & os.ST_RDONLY
        number = errno.EROFS if read_only else errno.EACCES
        raise OSError(number, os.strerror(number), path)
    return target, stat.S_IMODE(os.stat(target).st_mode)


def publish(temporary: str, target: str, *, exclusive: bool) -> None:
    """Rename a complete file to its final name; a FileExistsError if ``exclusive`` and the name is taken."""
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
    """The path of the file that becomes ``path`` when it is complete."""
    folder, separator, name = path.rpartition("/") if "/" in path else path.rpartition(os.sep)
    temporary = f".{name}.{token}.tmp"
    if len(os.fsencode(temporary)) > _NAME_MAX:
        temporary = f".{token}.tmp"
    return f"{folder}{separator}{temporary}"


def clean_up(path: str, step: Callable[[], object]) -> None:
    """Take a step after a failure; if it fails too, log that, so that the first error is not hidden."""
    try:
        step()
    except FileNotFoundError:
        pass
    except Exception as error:
        logger.warning("Cleaning up the temporary file %s failed: %s", path, error)
