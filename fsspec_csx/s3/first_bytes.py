"""Requests for the first bytes of an object, which may be the whole object, into memory or a local file."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Mapping

from fsspec_csx.s3.consistent_read import BytesBuffer, checksum_function
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.checksum import matches, of_object
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, first_share
from fsspec_csx.storage.atomic import add_filename, atomic_local_write, write_at

# Bytes in memory at a time. Smaller objects, which may be many, are written in one piece.
_STEP = 2**20


class FirstBytes(RangeRequest):
    """A request for an object of unknown size; its memory is allocated when the response gives the size.

    Args:
        request_size: returns the bytes of each request for an object, given its size.
    """

    def __init__(self, name: object, request_size: Callable[[int], int]) -> None:
        super().__init__(0, probing=True)
        self.length = MIN_REQUEST
        self._name = name
        self._target: BytesBuffer | None = None
        # Cached, as the other requests begin where the share of the first attempt ends.
        self._share = functools.cache(lambda total: first_share(total, request_size(total)))

    def share(self, total: int) -> int:
        return self._share(total)

    @property
    def memory(self) -> memoryview:
        """The bytes received so far, and room for the rest."""
        return self._target.memory[: self.length] if self._target else memoryview(b"")

    def value(self) -> bytes:
        """Return the bytes; ``memory`` cannot be used afterwards."""
        return self._target.getvalue(self.length) if self._target else b""

    def expect(self, status: int, headers: Mapping[str, str]) -> None:
        super().expect(status, headers)
        if not self.filled:
            self._target = None  # allocated for another size

    def restart(self) -> None:
        self.filled = 0

    def next_buffer(self, most: int) -> memoryview:
        if self._target is None:
            self._target = BytesBuffer(self.length, self._name)
        return self.memory[self.filled : min(self.filled + most, self.length)]

    def advance(self, count: int) -> None:
        self.moved(count)
        self.filled += count

    def forget(self) -> None:
        """Free the memory."""
        self._target = None


class HeadFile(FirstBytes):
    """A request for an object of unknown size; see ``FirstBytes``.

    Args:
        request_size: as for ``FirstBytes``.
        target: the path of the file.
        writable: whether the file can be written here; called in a thread.
    """

    def __init__(
        self, name: object, request_size: Callable[[int], int], target: str, writable: Callable[[], bool]
    ) -> None:
        super().__init__(name, request_size)
        self._path = target
        self._writable = writable
        self._in_steps = False
        self._stack = contextlib.ExitStack()
        self._descriptor: int | None = None
        self._buffer = memoryview(b"")
        self._checksum = 0

    def expect(self, status: int, headers: Mapping[str, str]) -> None:
        super().expect(status, headers)
        if not self.filled:
            whole = self.total is not None and not self.cut_off
            self._in_steps = whole and self.length > _STEP and self._writable()

    def restart(self) -> None:
        super().restart()
        self._checksum = 0

    def next_buffer(self, most: int) -> memoryview:
        if not self._in_steps:
            return super().next_buffer(most)
        if not self._buffer:
            self._buffer = memoryview(bytearray(_STEP))
        return self._buffer[: min(most, self.length - self.filled)]

    def advance(self, count: int) -> None:
        """Record that ``count`` bytes of ``next_buffer`` were filled, and write them if the object is large.

        Raises:
            OSError: if writing fails, for example because the disk is full.
        """
        if self._in_steps:
            memory = self._buffer[:count]
            try:
                write_at(self._open(), memory, self.filled)
            except OSError as error:
                add_filename(error, self._path)
                self.failure = error
                raise
            if (check := checksum_function(self)) is not None:
                self._checksum = check(memory, self._checksum)
        super().advance(count)

    def _open(self) -> int:
        if self._descriptor is None:
            # Links to folders may change while a large object arrives.
            path = os.path.realpath(self._path) if self._in_steps else self._path
            self._descriptor = self._stack.enter_context(atomic_local_write(path))
        return self._descriptor

    def has_checksum(self) -> bool:
        """Return whether the bytes match the object's checksum, if the server has one."""
        if not self._in_steps:
            return matches(self.headers, self.memory)
        known = of_object(self.headers)
        return known is None or known[0].encoded(self._checksum) == known[1]

    def store(self) -> bool:
        """Publish the bytes as the local file; return False if the file cannot be written here."""
        if not (self._in_steps or self._writable()):
            return False
        descriptor = self._open()
        if not self._in_steps:
            write_at(descriptor, self.memory, 0)
        os.ftruncate(descriptor, self.length)  # a former state of the object may have been longer
        self._stack.close()
        self.forget()
        return True

    def forget(self) -> None:
        """Free the memory, and remove an incomplete file."""
        super().forget()
        self._buffer, self._descriptor = memoryview(b""), None
        error = RuntimeError("forgotten")
        self._stack.__exit__(type(error), error, None)  # ``atomic_local_write`` discards its file
