"""Local files that are replaced only by whole ones."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str) -> Iterator[int]:
    """The descriptor of a file that takes the place of ``path`` when the block ends without an exception."""
    target = os.path.realpath(path)
    former = os.stat(target) if os.path.exists(target) else None
    if former and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    temporary = f"{target}.{secrets.token_hex(8)}.tmp"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, stat.S_IMODE(former.st_mode) if former else 0o666)
    try:
        try:
            if former and hasattr(os, "fchmod"):
                os.fchmod(descriptor, stat.S_IMODE(former.st_mode))  # the umask may have taken some of it
            yield descriptor
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
