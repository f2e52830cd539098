"""The CRC-32 of zip archives: https://www.rfc-editor.org/rfc/rfc1952#section-8"""

from __future__ import annotations

from zlib_ng import zlib_ng


def crc32_of(data: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32 of bytes."""
    return int(zlib_ng.crc32(data))


class RunningCrc32:
    """The CRC-32 ``value`` of ``size`` bytes, added in order in pieces."""

    def __init__(self) -> None:
        self.value = self.size = 0

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes."""
        self.value = zlib_ng.crc32(data, self.value)
        self.size += len(data)

    def join(self, crc: int, size: int) -> None:
        """Add the next bytes by their CRC-32."""
        self.value = zlib_ng.crc32_combine(self.value, crc, size)
        self.size += size
