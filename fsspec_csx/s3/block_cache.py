"""BlockCache: blocks of objects in a folder of this machine, which all its processes share.

Each state of an object has a file of its own: an entry of 8 bytes for each block, then, from the next multiple of 4096
on, the bytes of the object. An entry is zero until its block is there; then it holds a mark and the block's CRC-32.
Only equal bytes are ever written to a place, so writers need no lock, and a block that is not there yet has no entry.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import struct
import threading
import weakref
from pathlib import Path

from fsspec_csx.s3.upload_journal import digest, open_owned
from fsspec_csx.storage.sizes import bytes_of

try:
    import fcntl
except ImportError:  # not every system has it
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("fsspec_csx")

BLOCK = 256 * 1024
DEFAULT_SIZE = "50GB"
"""The default of ``cache_size``."""

_ENTRY = struct.Struct("<4sI")
_MARK = b"blk1"
_PAGE = 4096
_SUFFIX = ".blocks"
# The folder is measured again when so large a part of its limit may have been written since.
_MEASURED_AGAIN = 64
# Folders of whose trouble a warning was logged.
_warned: set[Path] = set()


class BlockCache:
    """A folder of cached objects.

    Args:
        folder: is made if it is missing. The files are in a folder of the user's below it, which no other may enter.
        size: the most bytes that they may take, or a text such as ``50GB``; ValueError if it is none.
    """

    def __init__(self, folder: str | os.PathLike[str], size: int | str) -> None:
        self.folder, self.limit = folder, bytes_of(size, "cache_size")
        user = os.geteuid() if hasattr(os, "geteuid") else "user"
        self.path = Path(folder).expanduser().absolute() / f"fsspec_csx-{user}"
        self._lock = threading.Lock()
        self._open: weakref.WeakValueDictionary[str, CachedObject] = weakref.WeakValueDictionary()
        self._written = self.limit  # by this process since it measured the folder; it has not yet

    def open(self, names: tuple[str, ...], size: int) -> CachedObject | None:
        """Open the file of an object.

        Args:
            names: what identifies the object; the last is the ETag of its state.

        Returns:
            None if the object is larger than the cache, or the folder cannot be used, of which a warning is logged.
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
            os.utime(found.descriptor)  # those used last stay longest
            return found
        except (OSError, RuntimeError) as error:  # the latter if there is no home
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
        if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
            raise PermissionError(errno.EPERM, "This folder was not made by this user", os.fspath(self.path))
        if status.st_mode & 0o077:
            self.path.chmod(0o700)

    def warn(self, error: Exception) -> None:
        """Log, once for each folder, that it cannot be used."""
        if self.path not in _warned:
            _warned.add(self.path)
            logger.warning("The cache in %s cannot be used, so objects are read from S3: %s", self.path, error)

    def make_room(self, needed: int, name: str) -> None:
        """Remove the files that were not used for longest, so that so many bytes fit into the one of this name."""
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
                (self.path / name).unlink(missing_ok=True)  # whoever has it open can read it on
                used -= size


def _file_name(names: tuple[str, ...], size: int) -> str:
    return f"{digest(*names, str(size))}{_SUFFIX}"


class CachedObject:
    """The file of one state of an object, whose ETag and size these are.

    Args:
        descriptor: of the file, open for reading and writing; closed when this is dropped.
    """

    def __init__(self, cache: BlockCache, descriptor: int, name: str, etag: str, size: int) -> None:
        self.descriptor = descriptor  # threads that were given up may still use it after a read has failed
        # Not by __del__, during which the cache could still give this object to another thread.
        weakref.finalize(self, os.close, descriptor).atexit = False
        self.cache, self.name, self.etag, self.size = cache, name, etag, size
        self._full = False
        entries = -(-size // BLOCK) * _ENTRY.size
        self._data = -(-entries // _PAGE) * _PAGE
        if os.fstat(descriptor).st_size != self._data + size:
            os.ftruncate(descriptor, self._data + size)

    def present(self, start: int, end: int) -> list[bool]:
        """Whether each block from a position to another is there."""
        first, count = start // BLOCK, -(-end // BLOCK) - start // BLOCK
        entries = self._entries(first, count)
        return [entries.startswith(_MARK, place) for place in range(0, count * _ENTRY.size, _ENTRY.size)]

    def checksum(self, block: int) -> int | None:
        """The CRC-32 of a block; None if it is not there."""
        entry = self._entries(block, 1)
        return _ENTRY.unpack(entry)[1] if entry.startswith(_MARK) and len(entry) == _ENTRY.size else None

    def _entries(self, first: int, count: int) -> bytes:
        try:
            return os.pread(self.descriptor, count * _ENTRY.size, first * _ENTRY.size)
        except OSError:  # of a broken disk
            return b""

    def read(self, memory: memoryview, position: int) -> int:
        """Read from a position in the object; return how many bytes came, 0 if none can be read."""
        try:
            return int(os.preadv(self.descriptor, [memory], self._data + position))
        except OSError:
            return 0

    def write(self, memory: memoryview, position: int) -> bool:
        """Write to a position in the object; False if the disk takes nothing, of which a warning is logged."""
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
        """Note that a block is there."""
        self._set(block, _ENTRY.pack(_MARK, checksum))

    def drop(self, block: int) -> None:
        """Note that a block is damaged."""
        name = self.cache.path / self.name
        logger.warning("Block %d of %s in the cache is damaged; it is read from S3.", block, name)
        self._set(block, bytes(_ENTRY.size))

    def _set(self, block: int, entry: bytes) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(self.descriptor, entry, block * _ENTRY.size)

    def claim(self, start: int, end: int) -> bool:
        """Announce that this process fetches these bytes; False if another does."""
        return self._lock("F_WRLCK", start, end)

    def release(self, start: int, end: int) -> None:
        """End a claim."""
        self._lock("F_UNLCK", start, end)

    def _lock(self, kind: str, start: int, end: int) -> bool:
        # Locks of this kind end with the descriptor, so also with a killed process: fcntl(2), "Open file description".
        try:
            wanted = struct.pack("@hhqqi0q", getattr(fcntl, kind), os.SEEK_SET, start, end - start, 0)
            fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, wanted)
        except (OSError, AttributeError) as error:  # without such locks, each fetches all
            return not isinstance(error, (BlockingIOError, PermissionError))
        return True
