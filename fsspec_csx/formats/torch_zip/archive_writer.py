"""Writes the archive of torch.save. torch's own writer is slower: it calls Python several times for each record.

Before the first use, an archive is compared with torch's own byte by byte. If they differ, torch.save is used instead.

Format: a zip archive of uncompressed records, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT.
Padding aligns the bytes of each record. The last record is ``.data/serialization_id``: 20 digits of a hash of the
records' names, and 20 digits of a hash of their CRC-32s (torch/caffe2/serialize/inline_container.cc).
"""

from __future__ import annotations

import functools
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.serialization import config

from fsspec_csx.formats.io_wrappers import JoiningWriter, TrackingWriter
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.formats.torch_zip.zip_directory import FULL_32
from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.crc32 import RunningCrc32, crc32_of
from fsspec_csx.tensors.source import memory_of
from fsspec_csx.tensors.tiling import staged

HERE = "cpu"
"""The device type whose memory is written without a copy."""

_ROOT = b"archive/"  # torch's prefix for archives written to file objects
_LOCAL = struct.Struct("<4s2xH18x2H")  # flags, lengths of the name and of the extra field
_DESCRIPTOR, _DESCRIPTOR_64 = struct.Struct("<4s3I"), struct.Struct("<4sI2Q")  # CRC-32, size, size
_ENTRY = struct.Struct("<4s4xH6x3I2H10xI")  # flags, CRC-32, size, size, two lengths, position
_END_64, _LOCATOR_64 = struct.Struct("<4sQ2H8x4Q"), struct.Struct("<4s4xQI")
_END = struct.Struct("<4s4x2H2I2x")
_PADDING_HEAD = struct.Struct("<2sH")
_IDENTITY_SIZE = 40
_UTF_8, _DESCRIBED = 0x0800, 0x0008
_FULL_16 = 2**16 - 1
_64_BITS = 2**64 - 1
_PADDING = b"Z" * 2**15


class Layout:
    """The layout of an archive of torch.save; ``nbytes`` is its size."""

    def __init__(self, pickled: Pickled, alignment: int) -> None:
        self._pickled = pickled
        self._alignment = alignment
        directory = end = 0
        for name, content in self._records():
            size = _IDENTITY_SIZE if content is None else _nbytes(content)
            described = _descriptor(end, size).size if size else 0
            length = len(name) + len(_extra(end, size, size))
            directory += _ENTRY.size + length
            end += _LOCAL.size + length + _PADDING_HEAD.size
            end += -end % alignment + size + described
        self.nbytes = end + directory + _END_64.size + _LOCATOR_64.size + _END.size

    @property
    def is_staged(self) -> bool:
        """Whether bytes of storages are copied, as the processor cannot read them where they are."""
        return any(storage.device.type != HERE for storage in self._pickled.storages)

    def write(
        self,
        write: Callable[[Any], object],
        keep: Callable[[memoryview], int],
        contents: Iterable[Iterable[memoryview]] | None = None,
    ) -> None:
        """Write the archive.

        Args:
            write: takes a buffer, which may be reused when it returns.
            keep: takes the memory of a CPU tensor, which does not change while this object lives; returns its CRC-32.
            contents: the bytes of each storage that is not empty, in reused pieces; by default those in the storages.
        """
        joining = JoiningWriter(write)
        given = None if contents is None else iter(contents)

        def fill(storage: torch.UntypedStorage) -> int:
            if given is None and storage.device.type == HERE:
                return joining.keep(memory_of(storage), keep)
            crc = RunningCrc32()
            for piece in _staged(storage) if given is None else next(given):
                joining.write(piece)
                crc.add(piece)
            return crc.value

        self.write_around(joining.write, fill)
        joining.flush()

    def write_around(self, write: Callable[[bytes], object], fill: Callable[[torch.UntypedStorage], int]) -> None:
        """Write everything but the bytes of storages.

        Args:
            write: called many times.
            fill: writes the bytes of a storage that is not empty, and returns their CRC-32.
        """
        directory = bytearray()
        count = position = combined = 0
        for name, content in self._records():
            if content is None:
                content = _names_hash(len(self._pickled.storages)) + b"%020d" % combined
            size, crc, descriptor = _nbytes(content), 0, b""
            header = self._header(position, name, size)
            write(header)
            if size:
                if isinstance(content, bytes):
                    write(content)
                    crc = crc32_of(content)
                else:
                    crc = fill(content)
                descriptor = _descriptor(position, size).pack(b"PK\x07\x08", crc, size, size)
                write(descriptor)
                combined = combine(combined, crc)
            directory += _entry(position, name, size, crc)
            count += 1
            position += len(header) + size + len(descriptor)
        write(bytes(directory))
        write(_end(count, len(directory), position))

    def _records(self) -> Iterator[tuple[bytes, bytes | torch.UntypedStorage | None]]:
        """Yield the name and the content of each record; the content of the serialization id is None."""
        yield _ROOT + b"data.pkl", self._pickled.data
        yield _ROOT + b".format_version", b"1"
        yield _ROOT + b".storage_alignment", b"%d" % self._alignment
        yield _ROOT + b"byteorder", sys.byteorder.encode()
        for key, storage in enumerate(self._pickled.storages):
            yield b"%bdata/%d" % (_ROOT, key), storage
        yield _ROOT + b"version", b"3\n"
        yield _ROOT + b".data/serialization_id", None

    def _header(self, position: int, name: bytes, size: int) -> bytes:
        """Return what precedes the bytes of a record; as in torch, the compressed size is 0 here."""
        extra = _extra(position, size, 0)
        least = position + _LOCAL.size + len(name) + len(extra) + _PADDING_HEAD.size
        padding = -least % self._alignment
        length = len(extra) + _PADDING_HEAD.size + padding
        start = _LOCAL.pack(b"PK\x03\x04", _flags(size), len(name), length)
        return b"".join((start, name, extra, _PADDING_HEAD.pack(b"FB", padding), _PADDING[:padding]))


def combine(combined: int, crc: int) -> int:
    """Return the hash of the records' CRC-32s with that of the next record added."""
    return combined ^ ((crc + 0x9E3779B9 + (combined << 6) + (combined >> 2)) & _64_BITS)


def plan_archive(pickled: Pickled) -> Layout | None:
    """Return the layout of the archive of an object; None if this release of torch may write another one."""
    options = config.save
    alignment = options.storage_alignment
    if not options.compute_crc32 or not 0 < alignment <= len(_PADDING) or not _is_known(alignment, torch.save):
        return None
    return Layout(pickled, alignment)


@functools.lru_cache
def _is_known(alignment: int, save: object) -> bool:
    """Return whether torch.save, which a program may replace, writes the same archives, also beyond 4 GiB."""
    sizes = (0, 1, FULL_32 - 1, 0, FULL_32, 2**33, 0, 5)
    storage_of: Callable[..., torch.UntypedStorage] = torch.UntypedStorage
    pickled = Pickled([storage_of(size, device="meta") for size in sizes])  # their bytes are left out
    by_torch, own = _BytesRecorder(), bytearray()
    try:
        with torch.serialization.skip_data():
            # torch would report Ctrl-C as a RuntimeError, which would look like another layout.
            TrackingWriter(by_torch, lambda size: None).unmasked(lambda: pickled.torch_save(by_torch))
        Layout(pickled, alignment).write_around(own.extend, lambda storage: 0)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return own == by_torch.written


class _BytesRecorder:
    """A file that keeps the bytes written, without gaps where torch seeks."""

    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: Any) -> int:
        self.written += data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def flush(self) -> None:
        pass


@functools.lru_cache
def _names_hash(count: int) -> bytes:
    """Return the part of the serialization id that hashes the names of the records, with torch's own hash."""
    names = ("data.pkl", ".format_version", ".storage_alignment", "byteorder", *(f"data/{key}" for key in range(count)))
    return torch_compat.serialization_id(names)[:20].encode()


def _nbytes(content: bytes | torch.UntypedStorage) -> int:
    return len(content) if isinstance(content, bytes) else content.nbytes()


def _is_wide(position: int, size: int) -> bool:
    """Return whether the numbers of a record need 64 bits."""
    return position >= FULL_32 or size >= FULL_32


def _extra(position: int, size: int, compressed: int) -> bytes:
    """Return the extra field for the numbers that need 64 bits."""
    if not _is_wide(position, size):
        return b""
    numbers = [size, compressed] if size >= FULL_32 else []
    if position >= FULL_32:
        numbers.append(position)
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def _flags(size: int) -> int:
    return _UTF_8 | _DESCRIBED if size else _UTF_8


def _descriptor(position: int, size: int) -> struct.Struct:
    return _DESCRIPTOR_64 if _is_wide(position, size) else _DESCRIPTOR


def _entry(position: int, name: bytes, size: int, crc: int) -> bytes:
    """Return a record's entry in the directory."""
    extra = _extra(position, size, size)
    short = min(size, FULL_32)
    numbers = (crc, short, short, len(name), len(extra), min(position, FULL_32))
    return _ENTRY.pack(b"PK\x01\x02", _flags(size), *numbers) + name + extra


def _end(count: int, size: int, position: int) -> bytes:
    """Return the end of an archive whose directory has ``count`` entries and ``size`` bytes from ``position``."""
    numbers = (count, count, size, position)
    short = (min(count, _FULL_16), min(count, _FULL_16), min(size, FULL_32), min(position, FULL_32))
    return (
        _END_64.pack(b"PK\x06\x06", _END_64.size - 12, 0x031E, 45, *numbers)
        + _LOCATOR_64.pack(b"PK\x06\x07", position + size, 1)
        + _END.pack(b"PK\x05\x06", *short)
    )


def _staged(storage: torch.UntypedStorage) -> Iterator[memoryview]:
    """Copy a storage of another device through a bounded buffer."""
    return staged(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage))
