"""BlockCache: blocks of objects in a local folder, shared by all processes of the machine.

Each state of an object has its own file: an entry of 8 bytes for each block, then, from the next multiple of 4096 on,
the bytes of the object. An entry is zero until its block is cached; then it holds a mark and the block's CRC-32. All
writers of a place write equal bytes, so they need no lock, and a block without an entry is never read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import struct
import threading
import weakref
from pathlib import Path

from fsspec_csx.storage.owned_files import digest, open_owned
from fsspec_csx.storage.sizes import bytes_of

logger = logging.getLogger("fsspec_csx")

BLOCK = 256 * 1024
DEFAULT_SIZE = "50GB"
"""The default of ``cache_size``."""

_ENTRY = struct.Struct("<4sI")
_MARK = b"blk1"
_PAGE = 4096
_SUFFIX = ".blocks"
# The folder is measured again once this process may have written 1/64 of its limit.
_MEASURED_AGAIN = 64
# Folders for which a warning was logged.
_warned: set[Path] = set()


class BlockCache:
    """A folder of cached objects.

    Args:
        folder: created if missing. The files are in a subfolder of the user that other users cannot enter.
        size: the most bytes of the files, or a text such as ``50GB``; ValueError if it is not a size.
    """

    def __init__(self, folder: str | os.PathLike[str], size: int | str) -> None:
        self.folder, self.limit = folder, bytes_of(size, "cache_size")
        self.path = Path(folder).expanduser().absolute() / f"fsspec_csx-{os.geteuid()}"
        self._lock = threading.Lock()
        self._open: weakref.WeakValueDictionary[str, CachedObject] = weakref.WeakValueDictionary()
        self._written = self.limit  # by this process since it measured the folder; initially, so that it measures first

    def open(self, names: tuple[str, ...], size: int) -> CachedObject | None:
        """Open the file of an object.

        Returns None if the object is larger than the cache, or, with a warning, if the folder cannot be used.

        Args:
            names: what identifies the object; the last is the ETag of its state.
        """
        if size > self.limit:
            return None
        try:
            if not hasattr(os, "preadv"):
                raise OSError(errno.ENOTSUP, "This system cannot read into memory from a position")
            name = _file_name(names, size)
            with self._lock:
                found = self._open.get(name)
                if found is None:
                    self._make_folder()
                    descriptor = open_owned(self.path / name, 0o600)
                    found = self._open[name] = CachedObject(self, descriptor, name, names[-1], size)
            os.utime(found.descriptor)  # eviction removes the least recently used files
            return found
        except (OSError, RuntimeError) as error:  # RuntimeError if the user has no home folder
            self.warn(error)
            return None

    def remove(self, names: tuple[str, ...], size: int) -> None:
        """Remove the file of an object; see ``open``."""
        with self._lock, contextlib.suppress(OSError):
            self._open.pop(_file_name(names, size), None)
            (self.path / _file_name(names, size)).unlink(missing_ok=True)

    def _make_folder(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        status = self.path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "This folder was not made by this user", os.fspath(self.path))
        if status.st_mode & 0o077:
            self.path.chmod(0o700)

    def warn(self, error: Exception) -> None:
        """Log that the folder cannot be used, once for each folder."""
        if self.path not in _warned:
            _warned.add(self.path)
            logger.warning("The cache in %s cannot be used, so objects are read from S3: %s", self.path, error)

    def make_room(self, needed: int, name: str) -> None:
        """Remove the least recently used files, so that ``needed`` more bytes fit into the file ``name``."""
        with self._lock:
            self._written += needed
            if self._written < self.limit // _MEASURED_AGAIN:
                return
            self._written = needed
            with contextlib.suppress(OSError):
                self._evict(self.limit - needed, name)

    def _evict(self, limit: int, kept: str) -> None:
        files, used = [], 0
        with os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    if entry.name.endswith(_SUFFIX):
                        status = entry.stat(follow_symlinks=False)
                        used += status.st_blocks * 512
                        files.append((status.st_mtime_ns, status.st_blocks * 512, entry.name))
        for _, size, name in sorted(files):
            if used <= limit:
                break
            if name != kept:
                (self.path / name).unlink(missing_ok=True)  # processes that have it open can still read it
                used -= size


def _file_name(names: tuple[str, ...], size: int) -> str:
    return f"{digest(*names, str(size))}{_SUFFIX}"


class CachedObject:
    """The cache file of one state of an object, which has this ETag and size; it is closed when this is dropped."""

    def __init__(self, cache: BlockCache, descriptor: int, name: str, etag: str, size: int) -> None:
        self.descriptor = descriptor  # a thread that was given up may still use it after a failed read
        # A __del__ would be too early: while it runs, the cache could still return this object to another thread.
        weakref.finalize(self, os.close, descriptor).atexit = False
        self.cache, self.name, self.etag, self.size = cache, name, etag, size
        self._full = False
        entries = -(-size // BLOCK) * _ENTRY.size
        self._data = -(-entries // _PAGE) * _PAGE
        if os.fstat(descriptor).st_size != self._data + size:
            os.ftruncate(descriptor, self._data + size)

    def present(self, start: int, end: int) -> list[bool]:
        """Return whether each block from one position to another is cached."""
        first, count = start // BLOCK, -(-end // BLOCK) - start // BLOCK
        entries = self._entries(first, count)
        return [entries.startswith(_MARK, place) for place in range(0, count * _ENTRY.size, _ENTRY.size)]

    def checksum(self, block: int) -> int | None:
        """Return the CRC-32 of a block; None if it is not cached."""
        entry = self._entries(block, 1)
        return _ENTRY.unpack(entry)[1] if entry.startswith(_MARK) and len(entry) == _ENTRY.size else None

    def _entries(self, first: int, count: int) -> bytes:
        try:
            return os.pread(self.descriptor, count * _ENTRY.size, first * _ENTRY.size)
        except OSError:  # the disk is broken
            return b""

    def read(self, memory: memoryview, position: int) -> int:
        """Read from a position in the object; return the bytes read, 0 if none can be read."""
        try:
            return int(os.preadv(self.descriptor, [memory], self._data + position))
        except OSError:
            return 0

    def write(self, memory: memoryview, position: int) -> bool:
        """Write to a position in the object; log a warning and return False if the disk accepts no more data."""
        position += self._data
        try:
            while not self._full and memory:
                written = os.pwrite(self.descriptor, memory, position)
                memory, position = memory[written:], position + written
        except OSError as error:
            self._full = True
            self.cache.warn(error)
        return not self._full

    def add(self, block: int, checksum: int) -> None:
        self._set(block, _ENTRY.pack(_MARK, checksum))

    def drop(self, block: int) -> None:
        """Record that a block is damaged."""
        name = self.cache.path / self.name
        logger.warning("Block %d of %s in the cache is damaged; it is read from S3.", block, name)
        self._set(block, bytes(_ENTRY.size))

    def _set(self, block: int, entry: bytes) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(self.descriptor, entry, block * _ENTRY.size)

    def claim(self, start: int, end: int) -> bool:
        """Announce that this process fetches these bytes; return False if another does."""
        return self._lock("F_WRLCK", start, end)

    def release(self, start: int, end: int) -> None:
        self._lock("F_UNLCK", start, end)

    def _lock(self, kind: str, start: int, end: int) -> bool:
        # These locks end with the descriptor, and so with a killed process: see "Open file description" in fcntl(2).
        try:
            wanted = struct.pack("@hhqqi0q", getattr(fcntl, kind), os.SEEK_SET, start, end - start, 0)
            fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, wanted)
        except (OSError, AttributeError) as error:  # without such locks, each process fetches everything itself
            return not isinstance(error, (BlockingIOError, PermissionError))
        return True
