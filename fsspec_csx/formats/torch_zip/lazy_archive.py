"""A zip archive of torch.save loaded structure first: by torch.load itself, which is given the tensors' bytes later."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import sniff
from fsspec_csx.formats.io_wrappers import TrackingReader
from fsspec_csx.formats.read_options import ReadOptions
from fsspec_csx.formats.torch_zip import zip_directory
from fsspec_csx.formats.torch_zip.archive import Archive
from fsspec_csx.formats.torch_zip.placing import StoragePlacer
from fsspec_csx.formats.torch_zip.zip_directory import LOCAL, ZipEntry
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source


class _VirtualFile(TrackingReader):
    """An archive that answers torch's reader from what is in memory, and takes note of the tensors' bytes it asks for.

    What it does not know it reads.

    Attributes:
        noted: the record that was last asked for, the position of its bytes, and the address where they are to go.
    """

    noted: tuple[ZipEntry, int, int] | None = None

    def __init__(self, archive: Archive, source: Source) -> None:
        super().__init__(source.file, source.size)
        self._source = source
        self._archive = archive
        self._position = 0
        self._data = {offset: entry for entry, offset in archive.data if entry.size}
        self._contents = dict(archive.small.values())
        self._headers = {entry.header: zip_directory.local_header(entry, offset) for entry, offset in archive.data}

    def tell(self) -> int:
        """The position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position in bytes and return it."""
        self._position = offset + (0, self._position, self.size)[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, fewer only at the end of the file; -1 for all."""
        data = self._answer(self.size if size < 0 else size)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; one for the whole of a record with a tensor's bytes is not filled, but noted."""
        size = len(buffer)
        entry = self._data.get(self._position)
        if entry is not None and entry.size == size:
            self.noted = entry, self._position, ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        else:
            data = self._answer(size)
            size = len(data)
            buffer[:size] = data
        self._position += size
        return size

    def _answer(self, size: int) -> bytes:
        position = self._position
        header = self._headers.get(position)
        if header is not None and size == LOCAL.size:
            return header
        content = self._contents.get(position)
        if content is not None and size == len(content):
            return content
        if position >= self._archive.directory:
            return self._archive.end[position - self._archive.directory :][:size]
        size = min(size, self.size - position)
        return self._call(self._source.bytes_of, [(position, size)])[0]


def load(archive: Archive, source: Source, name: str, options: ReadOptions) -> LazyObject:
    """What ``torch.load(weights_only=True)`` makes of an archive, less the tensors' bytes; see ``StoragePlacer``."""
    file = _VirtualFile(archive, source)
    placer = StoragePlacer(source, name, options)

    def placed(storage: torch.UntypedStorage, location: str) -> Any:
        """What torch.load is to take for a storage that it just read, or believes so."""
        noted, file.noted = file.noted, None
        if not isinstance(location, str):
            raise InvalidCheckpointError(f"{name} is damaged: it has a storage on no device.", sniff.AGAIN)
        if noted is None or noted[2] != storage.data_ptr():
            return placer.given(storage, location)
        entry, offset, _ = noted
        record = entry.record(offset, storage)
        if storage.nbytes() != entry.size:
            what = f"its record {record.name!r} has {entry.size} bytes, and the tensor made of it {storage.nbytes()}"
            raise InvalidCheckpointError(f"{name} is damaged: {what}.", sniff.AGAIN)
        return placer.place(record, location)

    # torch itself reserves no memory for this one.
    place: Any = options.map_location if _is_meta(options.map_location) else placed
    obj = file.unmasked(lambda: torch.load(file, map_location=place, weights_only=True, mmap=False))  # type: ignore[arg-type]
    return LazyObject(obj, placer.records, placer.left)


def _is_meta(map_location: Any) -> bool:
    return map_location == "meta" or (isinstance(map_location, torch.device) and map_location.type == "meta")
