"""WholeChecksum: combines the checksum of a file from those of its parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec_csx.tensors.source import Spans


class WholeChecksum:
    """The checksum of a file.

    Args:
        algorithm: an ``Algorithm`` of ``s3.transport.checksum``.
        expected: the server's checksum of the file, as text.
    """

    def __init__(self, algorithm: Any, expected: str) -> None:
        self.algorithm = algorithm
        self.expected = expected
        self._parts: dict[int, tuple[int, int]] = {}

    def add(self, spans: Spans, checksums: Iterable[int]) -> None:
        """Add the checksums of spans that were read."""
        for (start, memory), checksum in zip(spans, checksums, strict=True):
            if len(memory) > self._parts.get(start, (0, 0))[0]:
                self._parts[start] = len(memory), checksum

    def of_file(self, size: int, kept: Spans) -> str | None:
        """Return the checksum of the file as text; None if some bytes were not read.

        Args:
            size: of the file, in bytes.
            kept: spans that were also read, without a checksum.
        """
        position = whole = 0
        starts = [*sorted(self._parts), size]
        for start in starts:
            if start < position:
                return None  # spans that overlap
            while position < start:
                found = _find(kept, position, start)
                if not found:
                    return None
                whole = self.algorithm.combine(whole, self.algorithm.compute(found, 0), len(found))
                position += len(found)
            if start < size:
                length, checksum = self._parts[start]
                whole = self.algorithm.combine(whole, checksum, length)
                position += length
        encoded: str = self.algorithm.encoded(whole)
        return encoded


def _find(kept: Spans, position: int, end: int) -> memoryview:
    """Return the kept bytes from ``position`` up to ``end`` at most; empty if there are none."""
    found = (
        memory[position - start : end - start] for start, memory in kept if start <= position < start + len(memory)
    )
    return next(found, memoryview(b""))
