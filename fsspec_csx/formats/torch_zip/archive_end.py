"""The end of an archive of torch.save, which depends on the checksums of its storages: read, checked and completed.

It is completed for other bytes only where every part that changes is seen to be what it is taken for; above all, the
archive's identity must follow from the checksums that torch wrote by the rule that it is then computed by.

Format: see ``layout``.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping

from fsspec_csx.tensors.crc32 import crc32_of

CRC = struct.Struct("<I")
DESCRIPTOR = b"PK\x07\x08"
"""What follows the bytes of a record begins with this; the CRC-32 comes next."""

_LOCAL, _ENTRY = b"PK\x03\x04", b"PK\x01\x02"
# The three records that end an archive, and where each begins, from the end.
_ENDS = ((b"PK\x06\x06", 98), (b"PK\x06\x07", 42), (b"PK\x05\x06", 22))
_IDENTITY, _IDENTITY_SIZE = b"/.data/serialization_id", 40
_64_BITS = 2**64 - 1


class LayoutError(Exception):
    """An archive is not laid out as it is known to be."""


class ArchiveEnd:
    """What follows the last storage of an archive.

    Raises:
        LayoutError: if something is not where it is known to be.
    """

    def __init__(self, data: bytes, size: int, names: Collection[bytes]) -> None:
        self._data = data
        self._names = set(names)
        try:
            directory = self._directory(size)
            self._records = list(self._entries(directory))
            self._identity = self._find_identity(directory)
        except (struct.error, IndexError, ValueError) as error:
            raise LayoutError from error
        found = [name for _, name, _, _ in self._records]
        _check(len(found) == len({*found}) and self._names.issubset(found) and len(self._names) == len(names))
        _check(self._data[self._identity + 20 : self._identity + 40] == self._combined({}))

    def completed(self, crcs: Mapping[bytes, int]) -> bytes:
        """The end of the archive with these CRC-32 of the storages' records."""
        changed = bytearray(self._data)
        for position, name, _, _ in self._records:
            if name in crcs:
                CRC.pack_into(changed, position + 16, crcs[name])
        identity = self._identity
        changed[identity + 20 : identity + 40] = self._combined(crcs)
        crc = crc32_of(changed[identity : identity + _IDENTITY_SIZE])
        CRC.pack_into(changed, identity + _IDENTITY_SIZE + 4, crc)
        CRC.pack_into(changed, self._identity_entry + 16, crc)
        return bytes(changed)

    def _directory(self, size: int) -> int:
        for signature, distance in _ENDS:
            _check(self._data[len(self._data) - distance :].startswith(signature))
        (position,) = struct.unpack_from("<Q", self._data, len(self._data) - _ENDS[0][1] + 48)
        return int(position) - (size - len(self._data))

    def _entries(self, start: int) -> list[tuple[int, bytes, int, int]]:
        """Where each entry begins, its name, its CRC-32 and its size; of the last one, the identity, apart."""
        found = []
        data, end = self._data, len(self._data) - _ENDS[0][1]
        _check(start >= 0)
        while start < end:
            _check(data.startswith(_ENTRY, start))
            crc, size, name, extra, comment = struct.unpack_from("<I4xI3H", data, start + 16)
            found.append((start, data[start + 46 : start + 46 + name], crc, size))
            start += 46 + name + extra + comment
        _check(start == end and bool(found) and found[-1][1].endswith(_IDENTITY))
        self._identity_entry, self._identity_name, self._identity_crc, size = found.pop()
        _check(size == _IDENTITY_SIZE)
        return found

    def _find_identity(self, directory: int) -> int:
        """Where the identity begins."""
        data, header = self._data, self._data.rindex(_LOCAL, 0, directory)
        name, extra = struct.unpack_from("<2H", data, header + 26)
        _check(data[header + 30 : header + 30 + name] == self._identity_name)
        start = header + 30 + int(name) + int(extra)
        content = data[start : start + _IDENTITY_SIZE]
        behind = data[start + _IDENTITY_SIZE :]
        crc = crc32_of(content)
        _check(content.isdigit() and crc == self._identity_crc)
        _check(behind.startswith(DESCRIPTOR) and CRC.unpack_from(behind, 4)[0] == crc)
        return start

    def _combined(self, crcs: Mapping[bytes, int]) -> bytes:
        """The second half of the identity, which is made of the CRC-32 of all records with bytes."""
        combined = 0
        for _, name, crc, size in self._records:
            if size:
                crc = crcs.get(name, crc)
                combined ^= (crc + 0x9E3779B9 + (combined << 6) + (combined >> 2)) & _64_BITS
        return b"%020d" % combined


def _check(holds: bool) -> None:
    if not holds:
        raise LayoutError
