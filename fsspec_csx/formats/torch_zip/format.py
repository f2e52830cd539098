"""The format of torch.save: zip archives, and the files of torch before 1.6."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fsspec_csx.errors import UnsafeCheckpointError
from fsspec_csx.formats import sniff, structure_limits
from fsspec_csx.formats.base import ON_CPU, FileFormat, ReadOptions
from fsspec_csx.formats.io_wrappers import TrackingWriter
from fsspec_csx.formats.torch_zip import archive, reader
from fsspec_csx.formats.torch_zip.archive_writer import Layout, plan_archive
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.formats.writer import FileWriter, expect_size
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from fsspec_csx.formats.conversion import Conversion, TorchFile


class TorchWriter(FileWriter):
    """Writes a torch file.

    Args:
        obj: unless it is copied, it must not change until the file is closed.

    Raises:
        ValueError: if ``load`` would refuse the object.
    """

    def __init__(self, obj: Any, *, copied: bool = False) -> None:
        structure_limits.check_depth(obj)
        self._pickled: Pickled | None = Pickled(obj, copied=copied)
        self._layout: Layout | None = None if copied else plan_archive(self._pickled)
        self.nbytes = (self._layout or self._pickled).nbytes

    def write(self, file: Any, *, advance: Callable[[int], object]) -> None:
        pickled = self._pickled
        assert pickled is not None
        writer = TrackingWriter(file, advance)
        self._layout = self._layout or plan_archive(pickled)
        expect_size(file, self.nbytes, copied=self._layout is None or self._layout.is_staged)
        if self._layout is None:
            writer.unmasked(lambda: pickled.torch_save(writer))
        else:
            self._layout.write(writer.write, writer.borrow_summed)

    def free(self) -> None:
        self._pickled = self._layout = None


class TorchFormat(FileFormat):
    """Files of ``torch.save``."""

    name = "torch"
    writer_class = TorchWriter

    def matches(self, head: bytes, size: int) -> bool:
        """Return True: the reader explains what is wrong with files of unknown formats."""
        return True

    def structure(self, source: Source, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        try:
            return reader.structure(source, name, options)
        except UnsafeCheckpointError:
            known = reader.partial_structure(source, name, options) if options.partial else None
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

    def converted(self, conversion: Conversion) -> TorchFile:
        return conversion.torch_file()


FORMAT = TorchFormat()
