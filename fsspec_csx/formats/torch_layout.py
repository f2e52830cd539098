"""What torch.save writes, laid out before any tensor's bytes are touched.

torch makes all but the bytes of the tensors, under ``torch.serialization.skip_data``, which leaves holes for them.
They are filled here, and what depends on them: the checksums, which torch computes at a sixth of the speed, and the
identity of the archive.

Format: a zip archive whose records are stored uncompressed, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT,
and whose last record is ``.data/serialization_id``: 20 digits of a hash of the records' names, and 20 of one of their
CRC-32s (torch/caffe2/serialize/inline_container.cc).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from zlib_ng import zlib_ng

from fsspec_csx.formats.pickled import Pickled
from fsspec_csx.formats.source import memory_of

_LOCAL, _ENTRY = b"PK\x03\x04", b"PK\x01\x02"
_CRC = struct.Struct("<I")
_END_SIZE = 98  # of the three records that end an archive of torch
_IDENTITY = b"/.data/serialization_id"
_64_BITS = 2**64 - 1
_STAGED = 16 * 2**20
# Storages below so many bytes are joined with what is around them, up to about so many.
_SMALL, _JOINED = 64 * 1024, 2**20
HERE = "cpu"
"""The type of device whose memory is written as it is."""


class Layout:
    """An archive as torch.save writes it, in parts that follow each other.

    Args:
        parts: what torch made, and between them the storages that belong there.
        names: of the storages' records, in order.

    Attributes:
        nbytes: its size.
        storages: in the order of the archive, which has only those with bytes.
    """

    def __init__(self, parts: list[bytes | torch.UntypedStorage], names: list[bytes]) -> None:
        self._parts = parts
        self._names = names
        self.storages = [part for part in parts if not isinstance(part, bytes)]
        self.nbytes = sum(len(part) if isinstance(part, bytes) else part.nbytes() for part in parts)

    def write(
        self,
        write: Callable[[Any], object],
        keep: Callable[[Any], object],
        contents: Iterable[Iterable[memoryview]] | None = None,
    ) -> None:
        """Write the archive.

        Args:
            write: takes a buffer that may be used again at once.
            keep: takes the memory of a tensor of the CPU, which stays as it is as long as this object lives.
            contents: the bytes of each storage, in pieces that may be used again at once; by default those that are in
                the storages.
        """
        given = None if contents is None else iter(contents)
        crcs: list[int] = []
        after_storage = False
        joined = bytearray()  # small parts: thousands of them, each handed on, would take longer than their bytes

        def hand_on() -> None:
            if joined:
                write(joined)
                joined.clear()

        def take(pieces: Iterable[memoryview]) -> int:
            crc = 0
            for piece in pieces:
                crc = zlib_ng.crc32(piece, crc)
                if len(piece) < _SMALL:
                    joined.extend(piece)
                else:
                    hand_on()
                    write(piece)
            return crc

        for number, part in enumerate(self._parts):
            if isinstance(part, torch.UntypedStorage):
                if given is not None:
                    crcs.append(take(next(given)))
                elif part.device.type == HERE and part.nbytes() < _SMALL:
                    memory = memory_of(part)
                    crcs.append(zlib_ng.crc32(memory))
                    joined += memory
                else:
                    hand_on()
                    crcs.append(_write_storage(part, write, keep))
                after_storage = True
                continue
            if number == len(self._parts) - 1 and crcs:
                part = _finished(part, self.nbytes, dict(zip(self._names, crcs, strict=True)))
            if after_storage:
                part = part[:4] + _CRC.pack(crcs[-1]) + part[8:]  # the record's descriptor
            joined += part
            after_storage = False
            if len(joined) >= _JOINED:
                hand_on()
        hand_on()

    def around_one(self) -> tuple[bytes, bytes, bytes] | None:
        """What comes before and after the only storage, and the name of its record; None if there is not just one."""
        if len(self._names) != 1 or not isinstance(self._parts[0], bytes):
            return None
        before, after = self._parts[0], self._parts[-1]
        assert isinstance(after, bytes)
        return before, after, self._names[0]


def laid_out(pickled: Pickled) -> Layout | None:
    """The archive that torch.save makes of an object; None where torch cannot tell it beforehand."""
    skip_data = getattr(torch.serialization, "skip_data", None)
    if skip_data is None:  # before torch 2.6
        return None
    sink = _Sink()
    with skip_data():
        pickled.torch_save(sink)
    return _layout(sink.parts, pickled.storages)


class _Sink:
    """A file that keeps what is written, and how many bytes were passed over."""

    def __init__(self) -> None:
        self.parts: list[bytearray | int] = []

    def write(self, data: Any) -> int:
        if not self.parts or isinstance(self.parts[-1], int):
            self.parts.append(bytearray())
        self.parts[-1] += data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 1 or offset < 0:
            msg = "Only what follows can be passed over."
            raise OSError(msg)
        if offset:
            self.parts.append(offset)
        return 0

    def flush(self) -> None:
        pass


def _layout(parts: list[bytearray | int], storages: list[torch.UntypedStorage]) -> Layout | None:
    filled: list[bytes | torch.UntypedStorage] = []
    names = []
    for part in parts:
        if isinstance(part, bytearray):
            filled.append(bytes(part))
            continue
        name = _record_before(filled)
        key = name.rpartition(b"/")[2]
        if not key.isdigit() or int(key) >= len(storages) or storages[int(key)].nbytes() != part:
            return None
        filled.append(storages[int(key)])
        names.append(name)
    return Layout(filled, names) if filled and isinstance(filled[-1], bytes) else None


def _record_before(parts: list[bytes | torch.UntypedStorage]) -> bytes:
    """The name of the record whose local header ends here; empty if none does."""
    before = parts[-1] if parts and isinstance(parts[-1], bytes) else b""
    header = before.rfind(_LOCAL)
    if header < 0:
        return b""
    (length,) = struct.unpack_from("<H", before, header + 26)
    return before[header + 30 : header + 30 + length]


def _write_storage(storage: torch.UntypedStorage, write: Callable[[Any], object], keep: Callable[[Any], object]) -> int:
    """Write the bytes of a storage, through bounded memory if it is on another device, and return their CRC-32."""
    if storage.device.type == HERE:
        memory = memory_of(storage)
        crc: int = zlib_ng.crc32(memory)
        keep(memory)
        return crc
    crc = 0
    there = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    here = torch.empty(min(_STAGED, len(there)), dtype=torch.uint8, pin_memory=storage.device.type == "cuda")
    memory = memory_of(here.untyped_storage())
    for start in range(0, len(there), _STAGED):
        piece = there[start : start + _STAGED]
        here[: len(piece)].copy_(piece)
        crc = zlib_ng.crc32(memory[: len(piece)], crc)
        write(memory[: len(piece)])
    return crc


def _finished(tail: bytes, size: int, crcs: dict[bytes, int]) -> bytes:
    """The end of an archive, from its last storage on, with the checksums of the storages' records and its identity."""
    changed = bytearray(tail)
    (position,) = struct.unpack_from("<Q", tail, len(tail) - _END_SIZE + 48)
    directory = position - (size - len(tail))
    combined = 0
    for entry, name in _entries(tail, directory):
        if name.endswith(_IDENTITY):
            _identify(changed, tail.rfind(_LOCAL, 0, directory), entry, combined)
            break
        if name in crcs:
            _CRC.pack_into(changed, entry + 16, crcs[name])
        crc, length = struct.unpack_from("<I4xI", changed, entry + 16)
        if length:
            combined ^= (crc + 0x9E3779B9 + (combined << 6) + (combined >> 2)) & _64_BITS
    return bytes(changed)


def completed(tail: bytes, size: int, name: bytes, crc32: int) -> bytes:
    """The end of an archive of so many bytes, after its only storage, whose record has this name and checksum."""
    return _finished(tail[:4] + _CRC.pack(crc32) + tail[8:], size, {name: crc32})


def _entries(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Where each entry of the directory begins, and its name."""
    while data.startswith(_ENTRY, start):
        name, extra, comment = struct.unpack_from("<3H", data, start + 28)
        yield start, data[start + 46 : start + 46 + name]
        start += 46 + name + extra + comment


def _identify(data: bytearray, header: int, entry: int, combined: int) -> None:
    """Write the second half of the archive's identity, and what depends on it."""
    name, extra = struct.unpack_from("<2H", data, header + 26)
    identity = header + 30 + name + extra
    data[identity + 20 : identity + 40] = b"%020d" % combined
    crc = zlib_ng.crc32(data[identity : identity + 40])
    _CRC.pack_into(data, identity + 44, crc)
    _CRC.pack_into(data, entry + 16, crc)
