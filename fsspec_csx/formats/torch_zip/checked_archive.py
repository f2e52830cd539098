"""Compares the records of a zip archive with their checksums while torch reads them, which torch does not do."""

from __future__ import annotations

from typing import Any

from fsspec_csx.formats.io_wrappers import TrackingReader
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import zip_directory
from fsspec_csx.formats.torch_zip.zip_directory import LOCAL, ZipEntry
from fsspec_csx.tensors.crc32 import crc32_of
from fsspec_csx.tensors.source import Source


class CheckedReader(TrackingReader):
    """A file for torch's reader, which reads each record's local header, and then its bytes at once.

    It raises an InvalidCheckpointError for a wrong checksum. Compressed records, and other files, are not checked.
    """

    def __init__(self, source: Source, name: str) -> None:
        super().__init__(source.file, source.size, source.advance)
        self._name = name
        self._headers = {entry.header: entry for entry in torch_archive.stored(source)}
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
            raise torch_archive.damaged(self._name, f"its record {record.name.decode(errors='replace')!r}")
