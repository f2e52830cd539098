"""The interface of a format. A new format is a folder with a subclass of ``Format``, and a row in ``registry``.

If its checkpoints are folders, it also defines a ``FolderLayout``; see ``folder_layout``.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from fsspec.callbacks import Callback

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import structure_limits
from fsspec_csx.formats.checkpoint_info import CheckpointInfo, TensorInfo
from fsspec_csx.formats.writer import CheckpointWriter, Target
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.tensors import names
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.names import Keys
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from fsspec_csx.formats.conversion import Conversion, SafetensorsFile, TorchFile
    from fsspec_csx.formats.verify_report import Report, Sum


@dataclass(frozen=True)
class ReadOptions:
    """How to read the structure of a checkpoint.

    Attributes:
        map_location: as for ``torch.load``; sharded checkpoints are read only to the CPU.
        weights_only: as for ``torch.load``; if False, the checkpoint may run any code.
        wanted: the offsets of the records whose storages ``map_location`` places; others stay on the CPU. None: all.
        partial: whether objects of unknown classes become placeholders.
    """

    map_location: Any = "cpu"
    weights_only: bool = True
    wanted: Collection[int] | None = None
    partial: bool = False


ON_CPU = ReadOptions()
"""Read all of a checkpoint to the CPU, without running code."""


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert a checkpoint; see ``manage.convert.convert``.

    Attributes:
        name: what errors call the source.
        dtype: the dtype to cast floating-point tensors to; None keeps theirs.
        keys: see ``checkpoint.load``.
        drop_values: whether to leave out what the format cannot hold.
        exclusive: whether to fail if the file exists.
        max_shard_size: see ``checkpoint.save``.
    """

    name: str
    dtype: torch.dtype | None = None
    keys: Keys | None = None
    drop_values: bool = False
    exclusive: bool = False
    max_shard_size: int | str = "5GB"


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote; see ``manage.convert.ConvertResult``. ``size`` is in bytes, 0 if unknown."""

    size: int
    tensors: int
    cast: int = 0
    dropped: tuple[str, ...] = ()
    separated: tuple[str, ...] = ()
    overflowed: tuple[str, ...] = ()


S = TypeVar("S", bound=Source)


class Format(ABC, Generic[S]):
    """A checkpoint format, whose checkpoints are opened as a ``Source``.

    Attributes:
        name: what ``inspect`` and ``convert`` call it.
        flattened: whether integer keys may load as strings, and empty containers may be lost.
        has_shard_size: whether ``writer`` takes ``max_shard_size``.
        has_checksums: whether the format stores checksums of tensors. If not, a file that is read whole is compared
            with the server's checksum of it.
        writer_class: takes the arguments of ``writer``; None if ``save`` does not write the format.
    """

    name: ClassVar[str]
    flattened: ClassVar[bool] = False
    has_shard_size: ClassVar[bool] = False
    has_checksums: ClassVar[bool] = True
    writer_class: ClassVar[Callable[..., CheckpointWriter] | None] = None

    # -- opening ---------------------------------------------------------------------------------------------------

    def matches(self, head: bytes, size: int) -> bool:
        """Return whether a file with these first bytes and this size has the format."""
        return False

    def open_file(self, file: Source, head: bytes, folder: Folder, name: str) -> Source | None:
        """Open the checkpoint that a file is or belongs to; return None if it has another format.

        ``head`` has the file's first bytes. The name of ``folder`` is that of the checkpoint, ``name`` the file's.
        """
        return None

    def open_folder(
        self, folder: Folder, names: Callable[[], Collection[str]]
    ) -> contextlib.AbstractContextManager[Source | None]:
        """Open a folder as a checkpoint; the context value is None if the folder has another format.

        ``names`` lists the folder, and caches the list.
        """
        return contextlib.nullcontext()

    # -- reading ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def structure(self, source: S, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        """Read the structure of a checkpoint, and records of where the bytes of its tensors are.

        Raises:
            CheckpointError: if the checkpoint is damaged or unsafe.
        """

    def load(self, source: S, keys: Keys | None, options: ReadOptions) -> Any:
        """Load a checkpoint or a part of it; return NotImplemented if the caller is to load it from the structure."""
        return NotImplemented

    def can_defer(self, source: S, name: str) -> bool:
        """Return whether the structure can be read without the bytes of the tensors."""
        return True

    def refuse_unread(self, obj: Any, name: str) -> None:
        """Raise an UnsafeCheckpointError for entries that were not read."""

    def safetensors_metadata(self, source: S) -> dict[str, str]:
        """Return the metadata to keep when the checkpoint is converted to safetensors; most formats have none."""
        return {}

    def written_by(self, source: S) -> tuple[str, dict[str, str]]:
        """Return the program that wrote the checkpoint, as text, and the checkpoint's metadata."""
        return self.name, {}

    def info(self, source: S, name: str) -> CheckpointInfo:
        """Describe a checkpoint without reading tensor data; objects of unknown classes become a ``Placeholder``."""
        tensors, values = {}, {}
        for key, value in names.walk(self.without_data(source, name)):
            if isinstance(value, torch.Tensor):
                nbytes = torch.Tensor.numel(value) * value.dtype.itemsize  # an attribute may hide the method
                tensors[key] = TensorInfo(value.dtype, _shape(value), nbytes)
            else:
                values[key] = value
        writer, metadata = self.written_by(source)
        return CheckpointInfo(name, self.name, writer, source.stored, tensors, values, metadata)

    def without_data(self, source: S, name: str) -> Any:
        """Read the object of a checkpoint, with its tensors on the meta device where torch supports that."""
        try:
            found = self.structure(source, name, ReadOptions("meta", partial=True)).obj
        # torch has no quantized or nested meta tensors; since 2.14, it refuses sparse ones.
        except (InvalidCheckpointError, NotImplementedError):
            found = self.structure(source, name, ReadOptions(partial=True)).obj
        structure_limits.check_entries(found, name)
        return found

    def verify(self, source: S, name: str, progress: Callback, compute: Sum) -> Report:
        """Read all of a checkpoint and look for damage; ``compute`` computes the checksum of a whole file."""
        meter = ProgressMeter(progress, max(source.size, source.stored))
        source.advance = meter.advance
        report = self.examine(source, name, compute)
        meter.finish()
        return report

    @abstractmethod
    def examine(self, source: S, name: str, compute: Sum) -> Report:
        """Do the work of ``verify``; report the bytes read to the source's ``advance``."""

    # -- writing ---------------------------------------------------------------------------------------------------

    def writer(self, obj: Any, *, copied: bool = False, **options: Any) -> CheckpointWriter:
        """Return a writer that saves an object.

        Args:
            obj: the object; unless it is copied, it must not change until it is saved.
            copied: whether to copy the object first.
            options: options of this format.

        Raises:
            ValueError: if the format cannot hold the object; the message names the entry.
            TypeError: if the format has no such option.
        """
        if self.writer_class is None:
            msg = f"save does not write the format {self.name}. Use fsspec_csx.{self.name}.save."
            raise ValueError(msg)
        return self.writer_class(obj, copied=copied, **options)

    @abstractmethod
    def convert(self, source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
        """Convert a checkpoint of any format to this one; ``progress`` receives the number of bytes written.

        Raises:
            CheckpointError: if the source is invalid, or lacks an entry of ``keys``.
            ValueError: if the format cannot hold the checkpoint, or cannot cast; nothing is written then.
        """

    def refuse_cast(self, options: ConvertOptions) -> None:
        """Raise a ValueError if the options cast tensors, for formats that cannot."""
        if options.dtype is not None:
            msg = f"Tensors cannot be cast for the format {self.name}."
            raise ValueError(f"{msg} Convert to a file with the dtype, and then that file.")


class FileFormat(Format[Source]):
    """A format whose checkpoints are single files."""

    def examine(self, source: Source, name: str, compute: Sum) -> Report:
        from fsspec_csx.formats import verify_report  # avoids a circular import

        return verify_report.examine(source, name=name, compute=compute)

    def convert(self, source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
        from fsspec_csx.formats.conversion import Conversion  # avoids a circular import

        conversion = Conversion(source, options)
        return conversion.write(self.converted(conversion), target, progress)

    @abstractmethod
    def converted(self, conversion: Conversion) -> TorchFile | SafetensorsFile:
        """Return the file that a conversion writes."""


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    if not tensor.is_nested:
        return tuple(tensor.shape)
    return (torch.Tensor.size(tensor, 0), *(-1 for _ in range(torch.Tensor.dim(tensor) - 1)))
