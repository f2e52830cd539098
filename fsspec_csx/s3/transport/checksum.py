"""The checksums of S3, and their headers.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from awscrt import checksums as crt
from zlib_ng import zlib_ng


@dataclass(frozen=True)
class Algorithm:
    """How a checksum is computed.

    Attributes:
        compute: from a buffer, and the checksum of the bytes before it.
        combine: from the checksums of two consecutive runs of bytes, and the length of the second.
        size: of the checksum, in bytes.
    """

    compute: Callable[[memoryview, int], int]
    combine: Callable[[int, int, int], int]
    size: int

    def encoded(self, checksum: int) -> str:
        """Return a checksum as S3 writes it."""
        return base64.b64encode(checksum.to_bytes(self.size, "big")).decode()


CRC64NVME = Algorithm(crt.crc64nvme, crt.combine_crc64nvme, 8)
CRC32 = Algorithm(zlib_ng.crc32, zlib_ng.crc32_combine, 4)
# Bytes of which two checksums are computed, one after the other, from the processor's cache.
_CACHED = 2**20
_BY_HEADER = {
    "x-amz-checksum-crc64nvme": CRC64NVME,
    "x-amz-checksum-crc32c": Algorithm(crt.crc32c, crt.combine_crc32c, 4),
    "x-amz-checksum-crc32": CRC32,
}


def both_checksums(memory: memoryview, crc32: int) -> tuple[int, int]:
    """Return the CRC-32 of bytes that follow others with ``crc32``, and the CRC64NVME of the new bytes alone."""
    crc64nvme = 0
    for start in range(0, len(memory), _CACHED):
        step = memory[start : start + _CACHED]
        crc32 = CRC32.compute(step, crc32)
        crc64nvme = CRC64NVME.compute(step, crc64nvme)
    return crc32, crc64nvme


def of_object(headers: Mapping[str, str]) -> tuple[Algorithm, str] | None:
    """Return the algorithm and the checksum, as S3 writes it, of a whole object; None if the headers have none."""
    if headers.get("x-amz-checksum-type", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    for header, algorithm in _BY_HEADER.items():
        value = headers.get(header)
        if value is not None and "-" not in value:  # with a hyphen, it is a checksum of the parts' checksums
            return algorithm, value
    return None


def matches(headers: Mapping[str, str], memory: memoryview) -> bool:
    """Return whether the bytes of a whole object match its checksum, if the headers have one."""
    known = of_object(headers)
    return known is None or known[0].encoded(known[0].compute(memory, 0)) == known[1]
