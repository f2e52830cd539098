"""Local files that are replaced only by whole ones."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator

_NAME_MAX = 255
# What filesystems answer that have no room, or none for this user.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What filesystems answer that know no hard links.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}


@contextlib.contextmanager
def atomic_local_write(path: str, *, exclusive: bool = False) -> Iterator[int]:
    """The descriptor of a file that takes the place of ``path`` when the block ends without an exception.

    Args:
        path: its folder exists.
        exclusive: whether there must be no file yet.
    """
    target, mode = resolve_target(path)
    temporary = temporary_path(target, secrets.token_hex(8))
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666 if mode is None else mode)
    try:
        try:
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(descriptor, mode)  # the umask may have taken some of it
            yield descriptor
        finally:
            os.close(descriptor)
        publish(temporary, target, exclusive=exclusive)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        add_filename(error, target)
        raise


def add_filename(error: BaseException, path: str) -> None:
    """Let an error tell which folder has no room, where that is its cause: the system tells only that there is none."""
    if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
        error.filename = os.path.dirname(path)


def resolve_target(path: str) -> tuple[str, int | None]:
    """The file that is replaced, where ``path`` may be a link to it, and its mode; None if there is none yet.

    Raises:
        PermissionError: if it is write-protected.
        OSError: if all of its filesystem is.
    """
    target = os.path.realpath(path)
    former = os.stat(target) if os.path.exists(target) else None
    if former:
        check_writable(target, path)
    return target, stat.S_IMODE(former.st_mode) if former else None


def check_writable(target: str, path: str) -> None:
    """Refuse to replace a file that is write-protected: the renaming alone would not ask.

    Args:
        target: the file.
        path: by which it is told.

    Raises:
        PermissionError: if it is.
        OSError: if all of its filesystem is.
    """
    if os.access(target, os.W_OK):
        return
    read_only = hasattr(os, "statvfs") and os.statvfs(target).f_flag & os.ST_RDONLY
    number = errno.EROFS if read_only else errno.EACCES
    raise OSError(number, os.strerror(number), path)


def publish(temporary: str, target: str, *, exclusive: bool) -> None:
    """Let a file have its name.

    Raises:
        FileExistsError: if ``exclusive`` and there is something of that name.
    """
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
    """The path of a file that will be ``path`` when it is whole."""
    folder, separator, name = path.rpartition("/") if "/" in path else path.rpartition(os.sep)
    temporary = f".{name}.{token}.tmp"
    if len(os.fsencode(temporary)) > _NAME_MAX:
        temporary = f".{token}.tmp"
    return f"{folder}{separator}{temporary}"
