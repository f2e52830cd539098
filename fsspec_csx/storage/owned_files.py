"""Files that later runs find again: their names, locks, and checks that they belong to this user."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path


def digest(*texts: str) -> str:
    """Return a digest of texts, in 32 hexadecimal digits."""
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:32]


def lock(descriptor: int) -> bool:
    """Lock a file until its descriptor is closed; False if another process holds it, or the system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(descriptor).st_nlink > 0  # the former holder of the lock may have removed it


def open_owned(path: str | Path, mode: int) -> int:
    """Open or create a file for reading and writing, in a folder that other users may write to.

    Args:
        mode: permissions of a new file.

    Raises:
        OSError: if it cannot be opened, is a link or not a regular file, or belongs to another user.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1 and status.st_uid == os.geteuid():
        return descriptor
    os.close(descriptor)
    raise PermissionError(errno.EPERM, "This file was not made by this user", os.fspath(path))
