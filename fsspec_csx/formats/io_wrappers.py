"""File objects that count bytes, and keep the original error of the file below them.

torch hides errors of the file that it uses: its zip writer answers a failed ``write`` with "unexpected pos", its
readers a failed ``readinto`` with a SystemError. ``unmasked`` raises the original error instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fsspec_csx.tensors.crc32 import crc32_of
from fsspec_csx.tensors.source import read_some

T = TypeVar("T")

_LARGE = 2**20


class _Tracking:
    """The base of reader and writer."""

    failure: BaseException | None = None

    def __init__(self, file: Any, advance: Callable[[int], object]) -> None:
        self._file = file
        self._advance = advance

    def unmasked(self, operation: Callable[[], T]) -> T:
        """Run an operation on the file; raise an error of the file, or an interrupt, in its original form."""
        try:
            result = operation()
        except BaseException as error:
            original = self.failure or _interrupt(error)
            if original is None or original is error:
                raise
        else:
            original = self.failure
            if original is None:
                return result
        # Outside of except, where torch's error would become the context.
        raise original

    def _call(self, method: Callable[..., T], *args: Any) -> T:
        if self.failure is not None:
            raise self.failure
        try:
            return method(*args)
        except BaseException as error:
            self.failure = error
            raise

    def tell(self) -> int:
        return int(self._call(self._file.tell))


class TrackingWriter(_Tracking):
    """A file for writing. After a failure, nothing more reaches the file below."""

    def write(self, data: Any) -> int:
        """Write all of a buffer, without a copy."""
        return self._write(self._file.write, data)

    def borrow(self, data: Any) -> int:
        """Write all of a buffer that does not change until the file below is closed."""
        return self._write(getattr(self._file, "write_borrowed", self._file.write), data)

    def borrow_summed(self, data: memoryview) -> int:
        """Write single bytes as ``borrow`` does, and return their CRC-32."""
        write = getattr(self._file, "write_summed", None)
        if write is None:
            self.borrow(data)
            return crc32_of(data)
        crc32: int = self._call(write, data)
        self._call(self._advance, len(data))
        return crc32

    def _write(self, write: Callable[[Any], int | None], data: Any) -> int:
        # Not by _call, for speed: each small tensor takes five calls.
        if self.failure is not None:
            raise self.failure
        try:
            size = memoryview(data).nbytes
            written = write(data)
            # torch ignores the result, and one system call writes at most 2 GiB. None means all.
            if written is not None and written < size:
                self._write_rest(memoryview(data).cast("B")[written:])
            self._advance(size)
        except BaseException as error:
            self.failure = error
            raise
        return size

    def _write_rest(self, rest: memoryview) -> None:
        while rest:
            written = self._file.write(rest)
            if not written:
                msg = f"The file accepts no more bytes, {len(rest)} before the end. Check that its device is ready."
                raise OSError(msg)
            rest = rest[written:]

    def flush(self) -> None:
        self._call(self._file.flush)


class TrackingReader(_Tracking):
    """A seekable file for reading."""

    def __init__(self, file: Any, size: int, advance: Callable[[int], object] = lambda count: None) -> None:
        super().__init__(file, advance)
        self.size = size

    def read(self, size: int = -1) -> bytes:
        """Read ``size`` bytes, fewer only at the end of the file; -1 for all."""
        return self._call(self._read, size)

    def _read(self, size: int) -> bytes:
        if size > _LARGE:
            # A damaged file may ask for any size, and the file below may reserve that much memory.
            size = max(0, min(size, self.size - self._file.tell()))
        data: bytes = self._file.read(size)
        while 0 < len(data) < size and (more := self._file.read(size - len(data))):
            data += more
        self._advance(len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, without a copy; only at the end of the file it is not filled."""
        return self._call(self._readinto, buffer)

    def _readinto(self, buffer: Any) -> int:
        size = memoryview(buffer).nbytes
        count = last = read_some(self._file, buffer)
        while 0 < count < size and last:
            last = read_some(self._file, memoryview(buffer).cast("B")[count:])
            count += last
        self._advance(count)
        return count

    def readline(self) -> bytes:
        """Read up to and including the next newline."""
        line: bytes = self._call(self._file.readline)
        self._advance(len(line))
        return line

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position in bytes and return it; raise a ValueError for one before the start."""
        base = 0
        if whence:
            self._call(self._file.seek, 0, whence)
            base = self.tell()
        if base + offset < 0:
            msg = f"The position {base + offset} lies before the start of the file. Seek to 0 or more."
            raise ValueError(msg)
        self._call(self._file.seek, base + offset)
        return base + offset


class JoiningWriter:
    """Joins small buffers before it writes them: thousands of separate writes would be slow."""

    _small, _most = 64 * 2**10, 2**20

    def __init__(self, write: Callable[[Any], object]) -> None:
        self._write = write
        self._joined = bytearray()

    def keep(self, data: memoryview, keep: Callable[[memoryview], int]) -> int:
        """Write all of a buffer, and return its CRC-32; ``keep`` does so with a large one."""
        if len(data) < self._small:
            self.write(data)
            return crc32_of(data)
        self.flush()
        return keep(data)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of a buffer."""
        if len(data) < self._small:
            self._joined += data
            if len(self._joined) >= self._most:
                self.flush()
            return
        self.flush()
        self._write(data)

    def flush(self) -> None:
        """Write the buffered bytes."""
        if self._joined:
            self._write(self._joined)
            self._joined.clear()


def _interrupt(error: BaseException) -> BaseException | None:
    """Return the interrupt behind an error that torch's C++ code made of it; None if there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if not isinstance(seen, Exception):
            return seen
        seen = seen.__context__
    return None
