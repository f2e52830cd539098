"""The format of safetensors files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fsspec_csx.formats.base import ON_CPU, FileFormat, ReadOptions
from fsspec_csx.formats.safetensors import header, reader, writer
from fsspec_csx.formats.safetensors.writer import Prepared
from fsspec_csx.formats.storage_placement import placed
from fsspec_csx.formats.writer import FileWriter
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.snapshot import copies_of
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from fsspec_csx.formats.conversion import Conversion, SafetensorsFile


class SafetensorsWriter(FileWriter):
    """Writes a safetensors file. Raise a ValueError that names an entry which the format cannot hold."""

    def __init__(self, obj: Any, *, copied: bool = False) -> None:
        tensors = writer.checked(obj)
        self._file: Prepared | None = writer.file_of(copies_of(tensors) if copied else tensors)
        self.nbytes = self._file.nbytes

    def write(self, file: Any, *, advance: Callable[[int], object]) -> None:
        assert self._file is not None
        self._file.write(file, advance=advance)

    def free(self) -> None:
        self._file = None


class SafetensorsFormat(FileFormat):
    """Files of tensors by name."""

    name = "safetensors"
    has_checksums = False
    writer_class = SafetensorsWriter

    def matches(self, head: bytes, size: int) -> bool:
        return header.is_safetensors(head, size)

    def structure(self, source: Source, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        return placed(source, reader.structure(source, name=name), name, options)

    def safetensors_metadata(self, source: Source) -> dict[str, str]:
        return reader.metadata(source)

    def written_by(self, source: Source) -> tuple[str, dict[str, str]]:
        return "safetensors", reader.metadata(source)

    def converted(self, conversion: Conversion) -> SafetensorsFile:
        return conversion.safetensors_file()


FORMAT = SafetensorsFormat()
