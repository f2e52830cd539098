"""What a format offers. A new format is a folder with a subclass of ``Format``, and a line in ``registry``."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from fsspec.callbacks import Callback

from fsspec_csx.formats.checkpoint_info import CheckpointInfo, TensorInfo
from fsspec_csx.formats.scan import Sum
from fsspec_csx.formats.torch_zip import structure_limits
from fsspec_csx.formats.writer import CheckpointWriter, Target
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.tensors import names
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.names import Keys
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from fsspec_csx.formats.conversion import Conversion, SafetensorsFile, TorchFile
    from fsspec_csx.formats.verify_report import Report


@dataclass(frozen=True)
class ReadOptions:
    """How the structure of a checkpoint is read.

    Attributes:
        map_location: as for ``torch.load``; a sharded checkpoint has the CPU alone.
        weights_only: as for ``torch.load``; if False, the checkpoint may run any code.
        wanted: the offsets of the records whose storages go where ``map_location`` has them; others stay on the CPU.
            None for all.
        partial: whether objects of unknown classes become placeholders.
    """

    map_location: Any = "cpu"
    weights_only: bool = True
    wanted: Collection[int] | None = None
    partial: bool = False


ON_CPU = ReadOptions()
"""All of a checkpoint, on the CPU, without running code."""


@dataclass(frozen=True)
class Request:
    """How a checkpoint is to be converted; see ``manage.convert.convert``.

    Attributes:
        name: what errors call the source.
        dtype: what floating-point tensors are cast to; None for their own.
        keys: see ``checkpoint.load``.
        drop_values: whether to leave out what the format cannot hold.
        exclusive: whether an existing file is not replaced.
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
    """What a conversion wrote; see ``manage.convert.ConvertResult``.

    Attributes:
        size: in bytes; 0 if unknown.
    """

    size: int
    tensors: int
    cast: int = 0
    dropped: tuple[str, ...] = ()
    separated: tuple[str, ...] = ()
    overflowed: tuple[str, ...] = ()


S = TypeVar("S", bound=Source)


class Format(ABC, Generic[S]):
    """A format of checkpoints that are opened as a ``Source``.

    Attributes:
        name: what ``inspect`` and ``convert`` call it.
        flattened: whether integer keys may come back as strings, and empty containers be missing.
        has_shard_size: whether ``writer`` takes ``max_shard_size``.
        has_checksums: whether the bytes of tensors have checksums; if not, a file that is read whole is compared with
            that of the server.
    """

    name: ClassVar[str]
    flattened: ClassVar[bool] = False
    has_shard_size: ClassVar[bool] = False
    has_checksums: ClassVar[bool] = True

    # -- opening ---------------------------------------------------------------------------------------------------

    def matches(self, head: bytes, size: int) -> bool:
        """Whether a file that has these first bytes and this size is of the format."""
        return False

    def open_file(self, file: Source, head: bytes, folder: Folder, name: str) -> Source | None:
        """The checkpoint that a file is or belongs to; None if it is of no such format.

        Args:
            file: the file, opened.
            head: its first bytes.
            folder: where it lies; its name is that of the checkpoint.
            name: its name in the folder.
        """
        return None

    def open_folder(
        self, folder: Folder, names: Callable[[], Collection[str]]
    ) -> contextlib.AbstractContextManager[Source | None]:
        """The checkpoint that a folder is; None if it is of no such format.

        Args:
            folder: the folder.
            names: lists it; its result is kept.
        """
        return contextlib.nullcontext()

    # -- reading ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def structure(self, source: S, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        """What a checkpoint holds, with records of where the bytes of its tensors are.

        Raises:
            CheckpointError: if the checkpoint is damaged or unsafe.
        """

    def load(self, source: S, keys: Keys | None, options: ReadOptions) -> Any:
        """What a checkpoint holds, or a part of it; NotImplemented where that is made of the structure."""
        return NotImplemented

    def can_defer(self, source: S, name: str) -> bool:
        """Whether the structure can be read without the bytes of the tensors."""
        return True

    def refuse_unread(self, obj: Any, name: str) -> None:
        """Raise an UnsafeCheckpointError for entries that were not read."""

    def safetensors_metadata(self, source: S) -> dict[str, str]:
        """The metadata that a safetensors file made of a checkpoint takes over; most formats have none."""
        return {}

    def written_by(self, source: S) -> tuple[str, dict[str, str]]:
        """Who wrote a checkpoint, in a few words, and the metadata in it."""
        return self.name, {}

    def info(self, source: S, name: str) -> CheckpointInfo:
        """What a checkpoint holds, without tensors' data; an object of an unknown class is a ``Placeholder``."""
        tensors, values = {}, {}
        for key, value in names.walk(self.without_data(source, name)):
            if isinstance(value, torch.Tensor):
                nbytes = torch.Tensor.numel(value) * value.dtype.itemsize  # attributes may hide methods
                tensors[key] = TensorInfo(value.dtype, _shape(value), nbytes)
            else:
                values[key] = value
        writer, metadata = self.written_by(source)
        return CheckpointInfo(name, self.name, writer, source.stored, tensors, values, metadata)

    def without_data(self, source: S, name: str) -> Any:
        """The object of a checkpoint, its tensors on the device meta where torch can do so."""
        try:
            found = self.structure(source, name, ReadOptions("meta", partial=True)).obj
        except NotImplementedError:  # torch has no quantized and no nested tensors without data
            found = self.structure(source, name, ReadOptions(partial=True)).obj
        structure_limits.check_entries(found, name)
        return found

    def verify(self, source: S, name: str, progress: Callback, compute: Sum) -> Report:
        """Read all of a checkpoint and look for damage.

        Args:
            source: the checkpoint.
            name: what errors call it.
            progress: gets the bytes that are read.
            compute: the checksum of a file as a whole.
        """
        meter = ProgressMeter(progress, max(source.size, source.stored))
        source.advance = meter.advance
        report = self.examine(source, name, compute)
        meter.finish()
        return report

    @abstractmethod
    def examine(self, source: S, name: str, compute: Sum) -> Report:
        """Do what ``verify`` says; the bytes that are read go to the source's ``advance``."""

    # -- writing ---------------------------------------------------------------------------------------------------

    def writer(self, obj: Any, *, copied: bool = False, **options: Any) -> CheckpointWriter:
        """An object that is to be saved.

        Args:
            obj: it must not change until it is saved, unless it is copied.
            copied: whether to copy what is to be saved.
            options: of the format alone.

        Raises:
            ValueError: if the format cannot hold the object; it names the entry.
            TypeError: if the format has no such option.
        """
        msg = f"save does not write the format {self.name}. Use fsspec_csx.{self.name}.save."
        raise ValueError(msg)

    @abstractmethod
    def convert(self, source: Source, request: Request, target: Target, progress: Callback) -> Converted:
        """Write a checkpoint of any format anew in this one.

        Args:
            source: the checkpoint.
            request: how.
            target: where to.
            progress: gets the bytes that are written.

        Raises:
            CheckpointError: if the source is not what it should be, or lacks an entry of ``keys``.
            ValueError: if the format cannot hold it, or cannot cast; nothing is written then.
        """

    def refuse_cast(self, request: Request) -> None:
        """Raise a ValueError if tensors are to be cast, where the format cannot."""
        if request.dtype is not None:
            msg = f"Tensors cannot be cast for the format {self.name}."
            raise ValueError(f"{msg} Convert to a file with the dtype, and then that file.")


class FileFormat(Format[Source]):
    """A format whose checkpoints are one file."""

    def examine(self, source: Source, name: str, compute: Sum) -> Report:
        from fsspec_csx.formats import verify_report  # only here, as it imports the reader, which imports this

        return verify_report.examine(source, name=name, compute=compute)

    def convert(self, source: Source, request: Request, target: Target, progress: Callback) -> Converted:
        from fsspec_csx.formats.conversion import Conversion  # only here, as it imports the reader, which imports this

        conversion = Conversion(source, request)
        return conversion.write(self.converted(conversion), target, progress)

    @abstractmethod
    def converted(self, conversion: Conversion) -> TorchFile | SafetensorsFile:
        """The file that a conversion is to write."""


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    if not tensor.is_nested:
        return tuple(tensor.shape)
    return (torch.Tensor.size(tensor, 0), *(-1 for _ in range(torch.Tensor.dim(tensor) - 1)))
