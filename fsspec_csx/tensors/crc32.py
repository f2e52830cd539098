"""The CRC-32 of zip archives: https://www.rfc-editor.org/rfc/rfc1952#section-8"""

from __future__ import annotations

from zlib_ng import zlib_ng


def crc32_of(data: bytes | bytearray | memoryview) -> int:
    """The CRC-32 of some bytes."""
    return int(zlib_ng.crc32(data))


class RunningCrc32:
    """The CRC-32 ``value`` of ``size`` bytes that passed in order, in pieces."""

    def __init__(self) -> None:
        self.value = self.size = 0

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Take in the next bytes."""
        self.value = zlib_ng.crc32(data, self.value)
        self.size += len(data)

    def join(self, crc: int, size: int) -> None:
        """Take in the next bytes, of which the CRC-32 is known."""
        self.value = zlib_ng.crc32_combine(self.value, crc, size)
        self.size += size
