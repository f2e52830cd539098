"""The format of torch.save: zip archives, and the files of torch before 1.6."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsspec_csx.errors import UnsafeCheckpointError
from fsspec_csx.formats import sniff
from fsspec_csx.formats.base import ON_CPU, FileFormat, ReadOptions
from fsspec_csx.formats.torch_zip import archive, placeholder_reader, reader
from fsspec_csx.formats.torch_zip.writer import TorchWriter
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from fsspec_csx.formats.conversion import Conversion, TorchFile


class TorchFormat(FileFormat):
    """Files of ``torch.save``."""

    name = "torch"

    def matches(self, head: bytes, size: int) -> bool:
        """Return True: the reader explains what is wrong with files of unknown formats."""
        return True

    def structure(self, source: Source, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        try:
            return reader.structure(source, name, options)
        except UnsafeCheckpointError:
            known = placeholder_reader.structure(source, name, options) if options.partial else None
            if known is None:
                raise
            return known

    def can_defer(self, source: Source, name: str) -> bool:
        """Return False for unusual archives, which torch reads whole."""
        return sniff.is_legacy(source.head(sniff.HEAD)) or archive.read(source, name) is not None

    def written_by(self, source: Source) -> tuple[str, dict[str, str]]:
        if sniff.is_legacy(source.head(sniff.HEAD)):
            return "torch.save, in the format before torch 1.6", {}
        metadata = archive.metadata(source)
        form = metadata.get(".format_version")
        writer = f"torch.save, as a zip archive of version {metadata.get('version', 'unknown')}"
        return f"{writer} (format version {form})" if form else writer, metadata

    def writer(self, obj: Any, *, copied: bool = False) -> TorchWriter:  # type: ignore[override]  # no options
        return TorchWriter(obj, copied=copied)

    def converted(self, conversion: Conversion) -> TorchFile:
        return conversion.torch_file()


FORMAT = TorchFormat()
