"""Bodies of uploads: a sequence of buffers, or a slice of a file."""

from __future__ import annotations

import io
import os
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from fsspec_csx.s3.transport.checksum import CRC64NVME

PIECE, LARGEST_PIECE = 2**20, 4 * 2**20
"""Bytes between two checks whether an upload was given up: at first, and over a fast connection.

With TLS, the timeout applies to each piece.
"""

_READ, _SUMMED = 2**20, 4 * 2**20
_QUICK_SECONDS = 0.1  # pieces that take longer do not grow


def single_bytes(data: Any) -> memoryview:
    """Return a view of any contiguous buffer as single bytes."""
    view = memoryview(data)
    if view.format == "B" and view.ndim == 1 and view.contiguous:
        return view
    return view.cast("B") if view.nbytes else memoryview(bytearray())  # an empty array cannot be cast


def file_changed_error(path: str) -> OSError:
    """Return the error for a local file that changed or was removed during an upload."""
    if not os.path.lexists(path):
        return FileNotFoundError(f"{path} was removed while it was copied. Check what moved or deleted it.")
    return OSError(f"{path} changed while it was copied. Copy it again when nothing writes to it any more.")


class RequestBody(io.RawIOBase):
    """Bytes to send, readable as a file.

    Attributes:
        length: in bytes.
        crc64nvme: the checksum of all bytes, after ``prepare``.
        thread: the future of the thread that prepares or sends it.
        given_up: whether the thread is to fail soon.
        sent: how many bytes the system has taken on the present connection.
        interrupt: aborts that connection; None while no thread sends the body.
        failure: the error of reading its bytes, if that ended the upload.
        owned: whether the bytes stay valid after the caller has returned.
    """

    owned = True

    def __init__(self, length: int) -> None:
        self.length = length
        self.crc64nvme = 0
        self._prepared = False
        self.thread: Future[Any] | None = None
        self.given_up = False
        self.sent = 0
        self.interrupt: Callable[[], object] | None = None
        self.failure: OSError | None = None
        self._position = 0

    def give_up(self) -> None:
        """Make the upload fail soon, unless only the response is missing."""
        self.given_up = True
        if (interrupt := self.interrupt) is not None and self.sent < self.length:
            interrupt()

    @property
    def uses_caller_memory(self) -> bool:
        """Whether no thread may use it after the call has ended, as the memory may then be freed."""
        return not self.owned

    @abstractmethod
    def parts(self, start: int = 0) -> Iterator[memoryview]:
        """Yield the bytes from a position on, in consecutive buffers."""

    def prepare(self) -> None:
        """Compute the checksum, once."""
        if self._prepared:
            return
        self.crc64nvme, self._prepared = self._checksum(), True

    def _checksum(self) -> int:
        return self._added(0, self.parts())

    def _added(self, crc: int, memories: Iterable[memoryview]) -> int:
        for piece in self._cut(memories, _SUMMED):
            crc = CRC64NVME.compute(piece, crc)
        return crc

    def pieces(self, size: int, most: int = 0) -> Iterator[memoryview]:
        """Yield the bytes in pieces of at most ``size``, which grow up to ``most`` while each is used quickly.

        Raises:
            OSError: if the upload was given up.
        """
        return self._cut(self.parts(), size, most)

    def _cut(self, memories: Iterable[memoryview], size: int, most: int = 0) -> Iterator[memoryview]:
        for memory in memories:
            while memory:
                if self.given_up:
                    msg = "The upload was given up."
                    raise OSError(msg)
                began = time.monotonic()
                yield memory[:size]
                memory = memory[size:]
                if size < most and time.monotonic() - began < _QUICK_SECONDS:
                    size = min(2 * size, most)

    # -- as a file --------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.length

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position in bytes, and return it."""
        self._position = offset + (0, self._position, self.length)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Copy the next bytes, and return their number."""
        found = next(self.parts(self._position), memoryview(b""))[: len(buffer)]
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


class MemoryBody(RequestBody):
    """A body in memory, in several buffers.

    Args:
        memories: contiguous, of single bytes; unchanged until they have been sent.
        known: the CRC64NVME of some of them, by index.
    """

    def __init__(self, memories: Sequence[memoryview], known: Mapping[int, int] | None = None) -> None:
        super().__init__(sum(map(len, memories)))
        self.owned = all(memory.obj is not None for memory in memories)
        self._memories = memories
        self._known = known or {}

    def _checksum(self) -> int:
        crc = 0
        for index, memory in enumerate(self._memories):
            if (known := self._known.get(index)) is not None:
                crc = CRC64NVME.combine(crc, known, len(memory))
            else:
                crc = self._added(crc, [memory])
        return crc

    def parts(self, start: int = 0) -> Iterator[memoryview]:
        """Yield the bytes from a position on, in consecutive buffers."""
        for memory in self._memories:
            if start < len(memory):
                yield memory[start:]
            start = max(0, start - len(memory))


class LocalFile:
    """A file that stays open until nothing refers to this object.

    Args:
        descriptor: of the file; the caller may close it afterwards.
        path: of the file, for messages.
    """

    def __init__(self, descriptor: int, path: str) -> None:
        self.descriptor, self.path = os.dup(descriptor), path
        weakref.finalize(self, os.close, self.descriptor).atexit = False


class FileSliceBody(RequestBody):
    """A slice of a local file, read as it is sent.

    Args:
        file: shared by all slices, as many of them wait for a turn, and a process may have few open files.
        start: position of the first byte in the file.
        length: in bytes.
    """

    def __init__(self, file: LocalFile, start: int, length: int) -> None:
        super().__init__(length)
        self._file = file
        self._start = start

    def parts(self, start: int = 0) -> Iterator[memoryview]:
        """Yield the bytes from a position on, in consecutive buffers.

        Raises:
            OSError: if the file has become shorter, or cannot be read.
        """
        while start < self.length:
            try:
                data = os.pread(self._file.descriptor, min(_READ, self.length - start), self._start + start)
                if not data:
                    raise file_changed_error(self._file.path)
            except OSError as error:
                self.failure = error
                raise
            yield memoryview(data)
            start += len(data)


def file_body(path: str, size: int) -> RequestBody | None:
    """Return a body of a local file; None unless it still has ``size`` bytes. Called in a thread."""
    descriptor = os.open(path, os.O_RDONLY)  # half as many system calls as with a file object
    try:
        if size > _READ:
            same = os.fstat(descriptor).st_size == size
            return FileSliceBody(LocalFile(descriptor, path), 0, size) if same else None
        data = os.read(descriptor, size + 1)
    finally:
        os.close(descriptor)
    return MemoryBody([memoryview(data)]) if len(data) == size else None
