"""Reads the directory of a zip archive from the archive's last bytes.

Format: APPNOTE.TXT of PKWARE, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.12 to 4.3.16
and 4.5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fsspec_csx.tensors.lazy_object import Record

STORED = 0
"""The compression method of uncompressed entries."""

# Fields that are not needed are skipped (x).
LOCAL = struct.Struct("<4s22x2H")
"""The fixed part of an entry's local header, before its name, its extra fields and its bytes."""

_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4s4xQ4x")
_END_64 = struct.Struct("<4s12x2L4Q")
_CENTRAL = struct.Struct("<4s4x2H4x3L4H6xL")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_CENTRAL_SIGNATURE = b"PK\x01\x02"
_END_SIGNATURE = b"PK\x05\x06"
_LOCATOR_SIGNATURE = b"PK\x06\x07"
_END_64_SIGNATURE = b"PK\x06\x06"
FULL_32 = 0xFFFFFFFF
"""The largest 32-bit number: the true value is in an extra field."""

_ENCRYPTED = 1
_TAG_64 = 1  # of the extra field with 64-bit numbers


class ZipEntry(NamedTuple):
    """An entry of the directory.

    Attributes:
        method: how it is compressed.
        compressed: its size in the archive in bytes, without headers.
        size: its size in bytes.
        header: the position of its local header.
    """

    name: bytes
    method: int
    crc32: int
    compressed: int
    size: int
    header: int

    def record(self, offset: int, storage: torch.UntypedStorage) -> Record:
        """Return the record that fills a storage with the entry's bytes from ``offset``; a CRC-32 of 0 means none."""
        return Record(self.name.decode(errors="replace"), offset, storage, self.crc32 or None)


class Span(NamedTuple):
    """The position and size of the directory in bytes, and its number of entries."""

    start: int
    size: int
    total: int


def locate(tail: bytes, size: int) -> Span | None:
    """Locate the directory of an archive by its last bytes: at least 98, if it has as many.

    Return None if the archive has a comment or no valid end.
    """
    at = len(tail) - _END.size
    if at < 0:
        return None
    signature, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    if signature != _END_SIGNATURE or comment:
        return None
    end = size - _END.size
    if tail[max(0, at - _LOCATOR.size) : at].startswith(_LOCATOR_SIGNATURE):
        at -= _LOCATOR.size + _END_64.size
        if at < 0:
            return None
        signature, disk, first_disk, here, count, length, start = _END_64.unpack_from(tail, at)
        end -= _LOCATOR.size + _END_64.size
        position = _LOCATOR.unpack_from(tail, at + _END_64.size)[1]
        if signature != _END_64_SIGNATURE or position != end:
            return None
    if disk or first_disk or here != count or start + length != end or count * _CENTRAL.size > length:
        return None
    return Span(start, length, count)


def entries(directory: bytes, span: Span) -> list[ZipEntry] | None:
    """Return the entries of an archive, in the directory's order.

    Return None if the directory is incomplete, or has features that torch does not write: encryption, several disks.
    """
    found = []
    position = 0
    unpack, fixed = _CENTRAL.unpack_from, _CENTRAL.size
    for _ in range(span.total):
        if position + fixed > len(directory):
            return None
        signature, flags, method, crc32, compressed, size, name_size, extra_size, comment_size, disk, header = unpack(
            directory, position
        )
        name_end = position + fixed + name_size
        extra_end = name_end + extra_size
        if signature != _CENTRAL_SIGNATURE or flags & _ENCRYPTED or disk or extra_end > len(directory):
            return None
        if FULL_32 in (size, compressed, header):
            wide = _wide(directory[name_end:extra_end], (size, compressed, header))
            if wide is None:
                return None
            size, compressed, header = wide
        found.append(ZipEntry(directory[name_end - name_size : name_end], method, crc32, compressed, size, header))
        position = extra_end + comment_size
    return found if position == len(directory) else None


def _wide(extra: bytes, numbers: Sequence[int]) -> list[int] | None:
    """Return the numbers, with those that are ``FULL_32`` taken from the 64-bit extra field."""
    position = 0
    while position + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, position)
        position += 4
        if tag == _TAG_64 and position + length <= len(extra):
            wanted = sum(number == FULL_32 for number in numbers)
            if length < 8 * wanted:
                return None
            values = iter(struct.unpack_from(f"<{wanted}Q", extra, position))
            return [next(values) if number == FULL_32 else number for number in numbers]
        position += length
    return None


def data_offset(header: bytes, entry: ZipEntry) -> int | None:
    """Return where the bytes of an entry begin, by its local header; None if the header belongs to another entry."""
    if len(header) < LOCAL.size:
        return None
    signature, name_size, extra_size = LOCAL.unpack(header)
    if signature != _LOCAL_SIGNATURE or name_size != len(entry.name):
        return None
    return entry.header + LOCAL.size + len(entry.name) + int(extra_size)
