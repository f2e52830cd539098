"""What torch.save writes, laid out before any tensor's bytes are touched.

torch makes all but the bytes of the tensors, under ``torch.serialization.skip_data``, which leaves holes for them.
They are filled here, and what depends on them: the checksums, which torch computes at a sixth of the speed, and the
identity of the archive.

Format: a zip archive whose records are stored uncompressed, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT,
and whose last record is ``.data/serialization_id``: 20 digits of a hash of the records' names, and 20 of one of their
CRC-32s (torch/caffe2/serialize/inline_container.cc).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fsspec_csx.formats.io_wrappers import JoiningWriter
from fsspec_csx.formats.torch_zip.archive_end import CRC, DESCRIPTOR, ArchiveEnd, LayoutError
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.source import memory_of
from fsspec_csx.tensors.tiling import staged

_LOCAL = b"PK\x03\x04"
HERE = "cpu"
"""The type of device whose memory is written as it is."""


class Layout:
    """An archive as torch.save writes it, in parts that follow each other.

    Args:
        parts: what torch made, and between them the storages that belong there.

    Raises:
        LayoutError: if what depends on the storages is not where it is known to be.

    Attributes:
        storages: in the order of the archive, which has only those with bytes.
    """

    def __init__(self, parts: list[bytes | torch.UntypedStorage], names: list[bytes]) -> None:
        self._parts = parts
        self._names = names
        self.storages = [part for part in parts if not isinstance(part, bytes)]
        self.nbytes = sum(len(part) if isinstance(part, bytes) else part.nbytes() for part in parts)
        last = parts[-1] if parts else b""
        if not isinstance(last, bytes) or not _are_described(parts):
            raise LayoutError
        self._end = ArchiveEnd(last, self.nbytes, names) if names else None

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
        joining = JoiningWriter(write)
        for number, part in enumerate(self._parts):
            if isinstance(part, torch.UntypedStorage):
                crc = RunningCrc32()
                in_place = given is None and part.device.type == HERE
                for piece in next(given) if given is not None else _memories(part):
                    crc.add(piece)
                    joining.write(piece, keep if in_place else None)
                crcs.append(crc.value)
                after_storage = True
                continue
            if number == len(self._parts) - 1 and self._end is not None:
                part = self._end.completed(dict(zip(self._names, crcs, strict=True)))
            joining.write(_described(part, crcs[-1]) if after_storage else part)
            after_storage = False
        joining.flush()

    def around_one(self) -> tuple[bytes, Callable[[int], bytes]] | None:
        """What comes before the only storage, and what gives the rest for its CRC-32; None if there is not just one."""
        end, before = self._end, self._parts[0]
        if end is None or len(self._names) != 1 or not isinstance(before, bytes):
            return None
        return before, lambda crc: _described(end.completed({self._names[0]: crc}), crc)


def plan_archive(pickled: Pickled) -> Layout | None:
    """The archive that torch.save makes of an object; None if it is not laid out as it is known to be."""
    sink = _Sink()
    with torch.serialization.skip_data():
        pickled.torch_save(sink)
    try:
        return _layout(sink.parts, pickled.storages)
    except LayoutError:
        return None


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


def _are_described(parts: list[bytes | torch.UntypedStorage]) -> bool:
    """Whether each storage is followed by a descriptor."""
    return all(
        isinstance(part, bytes) and part.startswith(DESCRIPTOR)
        for before, part in itertools.pairwise(parts)
        if not isinstance(before, bytes)
    )


def _described(part: bytes, crc32: int) -> bytes:
    """What follows a storage, with its CRC-32 in the descriptor."""
    return part[:4] + CRC.pack(crc32) + part[8:]


def _layout(parts: list[bytearray | int], storages: list[torch.UntypedStorage]) -> Layout:
    filled: list[bytes | torch.UntypedStorage] = []
    names = []
    for part in parts:
        if isinstance(part, bytearray):
            filled.append(bytes(part))
            continue
        name = _record_before(filled)
        key = name.rpartition(b"/")[2]
        if not key.isdigit() or int(key) >= len(storages) or storages[int(key)].nbytes() != part:
            raise LayoutError
        filled.append(storages[int(key)])
        names.append(name)
    return Layout(filled, names)


def _record_before(parts: list[bytes | torch.UntypedStorage]) -> bytes:
    """The name of the record whose local header ends here; empty if none does."""
    before = parts[-1] if parts and isinstance(parts[-1], bytes) else b""
    header = before.rfind(_LOCAL)
    if header < 0:
        return b""
    (length,) = struct.unpack_from("<H", before, header + 26)
    return before[header + 30 : header + 30 + length]


def _memories(storage: torch.UntypedStorage) -> Iterable[memoryview]:
    """The bytes of a storage, through bounded memory if it is on another device."""
    if storage.device.type == HERE:
        return [memory_of(storage)]
    return staged(torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage))
