"""FirstBytes: a request for the first bytes of an object, which may be the whole object."""

from __future__ import annotations

from collections.abc import Mapping

from fsspec_csx.s3.consistent_read import BytesBuffer
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST


class FirstBytes(RangeRequest):
    """A request for an object of unknown size; its memory is allocated when the response gives the size.

    Args:
        name: of the object, for messages.
    """

    def __init__(self, name: object) -> None:
        super().__init__(0, probing=True)
        self.length = MIN_REQUEST
        self._name = name
        self._target: BytesBuffer | None = None

    @property
    def memory(self) -> memoryview:
        """The bytes received so far, and room for the rest."""
        return self._target.memory if self._target else memoryview(b"")

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
