"""Reads the records of a zip archive of torch.save by a few ranges, and checks that its structure can be loaded first.

Layout: https://github.com/pytorch/pytorch/blob/main/caffe2/serialize/inline_container.cc
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fsspec_csx.formats.damage import damaged, wrong_checksum
from fsspec_csx.formats.io_wrappers import TrackingReader
from fsspec_csx.formats.torch_zip import zip_directory
from fsspec_csx.formats.torch_zip.zip_directory import FULL_32, LOCAL, STORED, ZipEntry
from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.crc32 import crc32_of
from fsspec_csx.tensors.source import TAIL, Source

PICKLE = "data.pkl"
"""The record with the pickled object, without the tensors' bytes."""

# The other records that torch.load reads.
_METADATA = ("version", ".format_version", "byteorder", ".storage_alignment", ".data/serialization_id")
_SMALL = (PICKLE, *_METADATA)
_METADATA_MAX = 256  # bytes
_PLAIN_MAX = 64 * 2**10  # the most bytes that torch writes between a small record and the next entry
_EXTRA_MAX = 2**16
_TEXT_MAX = 32 * 2**20  # the most bytes of a record other than a tensor, if it is packed unusually densely
_TEXT_INFLATED_MAX = 50
_INFLATED_MAX = 1100  # deflate reaches a ratio of about 1030
# Names that never look at a tensor's data. All others that torch.load allows do, or might.
_BLIND = {
    *("collections.OrderedDict", "collections.Counter", "_codecs.encode"),
    *("builtins.bytearray", "builtins.set", "builtins.complex"),
    *("torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter", "torch.serialization._get_layout"),
    *("torch.storage.UntypedStorage", "torch.storage.TypedStorage"),
    *("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3"),
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"),
    *("torch._utils._rebuild_meta_tensor_no_storage", "torch._tensor._rebuild_from_type_v2"),
    "torch._utils._rebuild_wrapper_subclass",
}


@dataclass(frozen=True)
class Archive:
    """An archive whose tensors can be filled after the structure is loaded.

    Attributes:
        data: the tensors' records, each with the position of its bytes.
        pickle: the record with the object.
        version: the version of the layout.
    """

    data: list[tuple[ZipEntry, int]]
    pickle: bytes
    version: bytes


def read(source: Source, name: str) -> Archive | None:
    """Read the records of an archive.

    Returns:
        None if the archive differs from what torch.save writes today, or names a function that may look at tensor data.

    Raises:
        InvalidCheckpointError: if a record that was read is damaged, or records claim more than the file can hold.
    """
    found = records(source)
    if found is None:
        return None
    entries, end = found
    _check_sizes(entries, end, name)
    root = entries[0].name.partition(b"/")[0] + b"/" if entries else b"/"
    # torch's reader ignores case.
    if any(entry.method != STORED or entry.compressed != entry.size for entry in entries) or len(
        {entry.name.lower() for entry in entries}
    ) != len(entries):
        return None
    prefix = root + b"data/"
    data = [entry for entry in entries if entry.name.startswith(prefix)]
    wanted = {root + record.encode(): record for record in _SMALL}
    small = _read_small(source, entries, [entry for entry in entries if entry.name in wanted], end)
    if small is None:
        return None
    for entry, (_, content) in small.items():
        if entry.crc32 not in (0, crc32_of(content)):
            raise wrong_checksum(name, f"its record {wanted[entry.name]!r}")
    contents = {wanted[entry.name]: content for entry, (_, content) in small.items()}
    alignment = _alignment(contents)
    if alignment is None or not _is_native(contents) or not _is_blind(contents.get(PICKLE)):
        return None
    offsets = _offsets(source, entries, data, end, alignment)
    if offsets is None:
        return None
    return Archive(list(zip(data, offsets, strict=True)), contents[PICKLE], contents.get("version", b"").strip())


def records(source: Source) -> tuple[list[ZipEntry], int] | None:
    """Return all records of an archive, and the start of its zip directory; None if the file is no archive."""
    start = max(0, source.size - TAIL)
    (tail,) = source.bytes_of([(start, source.size - start)])
    span = zip_directory.locate(tail, source.size)
    if span is None:
        return None
    if span.start < start:
        (before,) = source.bytes_of([(span.start, start - span.start)])
        tail, start = before + tail, span.start
    entries = zip_directory.entries(tail[span.start - start :][: span.size], span)
    return None if entries is None else (entries, span.start)


def metadata(source: Source) -> dict[str, str]:
    """Return the small records of an archive as text, by name."""
    entries, end = records(source) or ([], 0)
    root = entries[0].name.partition(b"/")[0] + b"/" if entries else b"/"
    wanted = {root + record.encode(): record for record in _METADATA}
    chosen = [each for each in entries if each.name in wanted and each.method == STORED and each.size <= _METADATA_MAX]
    found = _read_small(source, entries, chosen, end) or {}
    contents = {wanted[entry.name]: content.decode(errors="replace").strip() for entry, (_, content) in found.items()}
    return {record: contents[record] for record in _METADATA if record in contents}


def stored(source: Source) -> list[ZipEntry]:
    """Return the records of an archive that are uncompressed and have a checksum; none if the file is no archive."""
    entries, _ = records(source) or ([], 0)
    return [each for each in entries if each.method == STORED and each.compressed == each.size and each.crc32]


class CheckedReader(TrackingReader):
    """A file for torch's reader, which reads each record's local header, and then its bytes at once.

    It raises an InvalidCheckpointError for a wrong checksum. Compressed records, and other files, are not checked.
    """

    def __init__(self, source: Source, name: str) -> None:
        super().__init__(source.file, source.size, source.advance)
        self._name = name
        self._headers = {entry.header: entry for entry in stored(source)}
        self._records: dict[int, ZipEntry] = {}

    def _read(self, size: int) -> bytes:
        position = self.tell()
        data = super()._read(size)
        self._check(position, data)
        return data

    def _readinto(self, buffer: Any) -> int:
        position = self.tell()
        count = super()._readinto(buffer)
        self._check(position, memoryview(buffer)[:count])
        return count

    def _check(self, position: int, data: bytes | memoryview) -> None:
        entry = self._headers.get(position)
        if entry is not None and len(data) == LOCAL.size:
            offset = zip_directory.data_offset(bytes(data), entry)
            if offset is not None:
                self._records[offset] = entry
        record = self._records.get(position)
        if record is not None and len(data) == record.size and crc32_of(data) != record.crc32:
            raise wrong_checksum(self._name, f"its record {record.name.decode(errors='replace')!r}")


def _check_sizes(entries: Sequence[ZipEntry], end: int, name: str) -> None:
    """Refuse records that claim more bytes than the file, whose directory begins at ``end``, can hold."""
    stored = sum(entry.size for entry in entries if entry.method == STORED)
    compressed = sum(entry.compressed for entry in entries)  # more than the file has, if records share bytes
    inflated = any(entry.size > _most_of(entry) for entry in entries if entry.method != STORED)
    beyond = any(entry.header + LOCAL.size + len(entry.name) + entry.compressed > end for entry in entries)
    if stored > end or compressed > end or inflated or beyond:
        raise damaged(name, f"its zip directory claims more than the {end} bytes before it")


def _most_of(entry: ZipEntry) -> int:
    """Return the most bytes a compressed record may have; only tensors are likely to be mostly constant."""
    if b"/data/" in entry.name:
        return (entry.compressed + 1) * _INFLATED_MAX
    return max(_TEXT_MAX, entry.compressed * _TEXT_INFLATED_MAX)


def _read_small(
    source: Source, entries: Sequence[ZipEntry], wanted: Sequence[ZipEntry], end: int
) -> dict[ZipEntry, tuple[int, bytes]] | None:
    """Read records; return the position of each record's bytes, and the bytes."""
    following = _following(entries, end)
    ranges = [(entry.header, following[entry.header] - entry.header) for entry in wanted]
    if any(length > entry.size + _PLAIN_MAX for entry, (_, length) in zip(wanted, ranges, strict=True)):
        return None
    small = {}
    for entry, content in zip(wanted, source.bytes_of(ranges), strict=True):
        offset = zip_directory.data_offset(content[: LOCAL.size], entry)
        if offset is None or offset + entry.size > following[entry.header]:
            return None
        small[entry] = (offset, content[offset - entry.header :][: entry.size])
    return small


def _following(entries: Sequence[ZipEntry], end: int) -> dict[int, int]:
    """Map the position of each local header to the position of what follows the entry."""
    headers = sorted(entry.header for entry in entries)
    return dict(zip(headers, [*headers[1:], end], strict=True))


def _alignment(contents: dict[str, bytes]) -> int | None:
    """Return the alignment in bytes; 64 if the archive does not record it."""
    said = contents.get(".storage_alignment", b"64")
    if not said.isdigit() or not 0 < len(said) < len(str(_EXTRA_MAX)):
        return None
    return int(said) or None


def _is_native(contents: dict[str, bytes]) -> bool:
    """Return whether the tensors have the byte order of this machine."""
    if "byteorder" in contents:
        return contents["byteorder"] == sys.byteorder.encode()
    return sys.byteorder == "little" and torch.serialization.get_default_load_endianness() is None


def _is_blind(pickled: bytes | None) -> bool:
    """Return whether a pickle names nothing that may look at a tensor's data while torch.load runs it.

    In protocol 2, the only one that torch.load takes, names end a line. Other bytes may look like a name; then the
    answer is False, which only costs time.
    """
    if pickled is None:
        return False
    own, added = torch_compat.allowed_globals()
    seeing = {path for path in own if path not in _BLIND and not _is_plain(path)} | added
    last = {path.rpartition(".")[2].encode() for path in seeing}
    return last.isdisjoint(line.rpartition(b".")[2] for line in pickled.split(b"\n"))


def _is_plain(path: str) -> bool:
    """Return whether a name is a storage class or a dtype."""
    module, _, name = path.rpartition(".")
    plain = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
    return plain or (module in ("torch", "torch.cuda") and name.endswith("Storage"))


# -- where the tensors' bytes begin ------------------------------------------------------------------------------------


def _offsets(
    source: Source, entries: Sequence[ZipEntry], data: Sequence[ZipEntry], end: int, alignment: int
) -> list[int] | None:
    """Return the positions of the records' bytes: by torch's rule where it holds, else from the local headers."""
    following = _following(entries, end)
    offsets = [_aligned(entry, alignment) for entry in data]
    unclear = [
        number
        for number, (entry, offset) in enumerate(zip(data, offsets, strict=True))
        if offset + entry.size + _descriptor(entry) != following[entry.header] and entry.size
    ]
    headers = source.bytes_of([(data[number].header, LOCAL.size) for number in unclear])
    for number, header in zip(unclear, headers, strict=True):
        entry = data[number]
        offset = zip_directory.data_offset(header, entry)
        if offset is None or offset + entry.size > following[entry.header]:
            return None
        offsets[number] = offset
    return offsets


def _aligned(entry: ZipEntry, alignment: int) -> int:
    """Return where torch puts the bytes of a record; see getPadding in inline_container.cc."""
    start = entry.header + LOCAL.size + len(entry.name) + 4
    if entry.size >= FULL_32 or entry.header >= FULL_32:
        start += 4 + 16 * (entry.size >= FULL_32) + 8 * (entry.header >= FULL_32)
    return -(-start // alignment) * alignment


def _descriptor(entry: ZipEntry) -> int:
    """Return the size of torch's data descriptor, a copy of a record's checksum and sizes behind its bytes."""
    if not entry.size:
        return 0
    return 24 if entry.size >= FULL_32 or entry.header >= FULL_32 else 16
