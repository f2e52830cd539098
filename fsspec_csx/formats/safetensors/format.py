"""The format of safetensors files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fsspec_csx.formats.base import ON_CPU, FileFormat, ReadOptions
from fsspec_csx.formats.safetensors import layout, reader, writer
from fsspec_csx.formats.safetensors.writer import Prepared
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.formats.torch_zip.storage_placement import placed
from fsspec_csx.formats.writer import FileWriter
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from fsspec_csx.formats.conversion import Conversion, SafetensorsFile


class SafetensorsFormat(FileFormat):
    """Files of tensors by name."""

    name = "safetensors"
    has_checksums = False

    def matches(self, head: bytes, size: int) -> bool:
        return layout.is_safetensors(head, size)

    def structure(self, source: Source, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        return placed(source, reader.structure(source, name=name), name, options)

    def safetensors_metadata(self, source: Source) -> dict[str, str]:
        return reader.metadata(source)

    def written_by(self, source: Source) -> tuple[str, dict[str, str]]:
        return "safetensors", reader.metadata(source)

    def writer(self, obj: Any, *, copied: bool = False) -> SafetensorsWriter:  # type: ignore[override]  # no options
        return SafetensorsWriter(obj, copied=copied)

    def converted(self, conversion: Conversion) -> SafetensorsFile:
        return conversion.safetensors_file()


class SafetensorsWriter(FileWriter):
    """Writes a safetensors file. Raise a ValueError that names an entry which the format cannot hold."""

    def __init__(self, obj: Any, *, copied: bool = False) -> None:
        parts = writer.prepared(obj)
        self.nbytes = parts.nbytes
        self._parts: Prepared | None = None if copied else parts
        self._copy = Pickled(obj, copied=True) if copied else None

    def write(self, file: Any, *, advance: Callable[[int], object]) -> None:
        parts = self._parts or writer.prepared(self._copy.rebuilt() if self._copy else {})
        parts.write(file, advance=advance)

    def free(self) -> None:
        self._parts = self._copy = None


FORMAT = SafetensorsFormat()
