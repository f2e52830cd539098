"""SummedFile: a file whose checksum is computed while it is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fsspec_csx.s3.transport.checksum import CRC64NVME

_CHUNK = 16 * 2**20


class SummedFile:
    """A file to write to, and the size and the CRC64NVME of what was written."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._crc = 0
        self.size = 0

    def write(self, data: Any) -> int:
        """Write all of it."""
        memory = memoryview(data).cast("B")
        self._crc = CRC64NVME.compute(memory, self._crc)
        self.size += len(memory)
        self._file.write(memory)
        return len(memory)

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()

    @property
    def checksum(self) -> str:
        """As S3 writes it."""
        return CRC64NVME.encoded(self._crc)


def checksum_of(file: Any) -> str:
    """The CRC64NVME of the rest of a file, as S3 writes it."""
    checksum = 0
    for chunk in chunks(file):
        checksum = CRC64NVME.compute(memoryview(chunk), checksum)
    return CRC64NVME.encoded(checksum)


def chunks(file: Any) -> Iterator[bytes]:
    """The bytes of a file, piece by piece."""
    while chunk := file.read(_CHUNK):
        yield chunk
