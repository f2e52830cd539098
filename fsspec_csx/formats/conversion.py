"""Conversion: what a checkpoint holds, on its way into a file of another format or dtype, a few pieces at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from fsspec_csx.formats import reader, registry
from fsspec_csx.formats.io_wrappers import TrackingWriter
from fsspec_csx.formats.safetensors import writer as safetensors_writer
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import placeholders
from fsspec_csx.formats.torch_zip.layout import plan_archive
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.tensors import names
from fsspec_csx.tensors.dtype_cast import DtypeCast
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.names import Choice, Keys, place_of
from fsspec_csx.tensors.source import Source, memory_of
from fsspec_csx.tensors.tensor_stream import StreamedTensor, TensorStream


class Conversion:
    """A checkpoint that is to be written anew.

    Its tensors are read while they are written, so that few are in memory at a time; those of a file that ``load``
    reads whole are in memory all.

    Args:
        source: the file.
        name: what errors call it.
        as_safetensors: whether to write a safetensors file, else one of torch.
        dtype: what tensors of floating-point numbers are cast to; None for their own.
        keys: see ``checkpoint.load``.
        drop_values: whether a safetensors file may go without what is no tensor.

    Attributes:
        nbytes: how many bytes will be written, or were.
        tensors: how many tensors will be.
        cast: how many of them in another dtype.
        dropped: the names of what is left out.
        separated: the names of tensors that share memory with others, and are written as copies.

    Raises:
        CheckpointError: if the file is not what it should be, or has nothing of a name in ``keys``.
        ValueError: if a safetensors file cannot hold the object.
        Exception: what the file raised, or torch where it is not the file's fault.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        as_safetensors: bool,
        dtype: torch.dtype | None = None,
        keys: Keys | None = None,
        drop_values: bool = False,
    ) -> None:
        found = reader.structure(source, name)
        obj = found.obj if keys is None else names.select(found.obj, Choice(found.obj, keys, name))
        format = registry.of(source)
        format.refuse_unread(obj, name)
        recast = DtypeCast(found.records, dtype)

        def damaged(record: Record) -> Exception:
            return torch_archive.damaged(name, names.of_records(obj, [record]))

        self.dropped: tuple[str, ...] = ()
        self.separated: tuple[str, ...] = ()
        if as_safetensors:
            tensors, self.dropped = _flat(obj, name, drop_values)
            tensors, metadata = _without_aliases(tensors, format.safetensors_metadata(source), found.obj)
            self._written: _SafetensorsFile | _TorchFile = _SafetensorsFile(tensors, metadata, source, recast, damaged)
            # Only now, as it takes tensors that a file can hold.
            self.separated = tuple(sorted({second for _, second in safetensors_writer.overlapping(tensors)}))
        else:
            placeholders.refuse(obj, name)
            self._written = _TorchFile(obj, source, recast, damaged)
        present = [value for _, value in names.walk(obj) if isinstance(value, torch.Tensor)]
        self.tensors = len(present)
        self.cast = sum(recast.dtype_of(tensor) != tensor.dtype for tensor in present)
        self.nbytes = self._written.nbytes
        self._obj = obj

    def write(self, file: Any, *, advance: Callable[[int], object]) -> tuple[str, ...]:
        """Write to a file.

        Args:
            file: a binary file object.
            advance: called many times with the number of bytes that were written.

        Returns:
            The names of tensors in whose memory finite numbers became infinite, as their dtype has none so large.

        Raises:
            InvalidCheckpointError: if the bytes of a tensor are not those that were saved.
            Exception: what a file or ``advance`` raised.
        """
        count = 0

        def counted(more: int) -> None:
            nonlocal count
            count += more
            advance(more)

        self._written.write(TrackingWriter(file, counted))
        self.nbytes = count
        places = {place_of(run.tensor) for run in self._written.runs.overflowed}
        present = names.walk(self._obj) if places else ()
        return tuple(key for key, value in present if place_of(value) in places and value.dtype.is_floating_point)


class _TorchFile:
    """An object as torch.save would write it, if its tensors were those that take their place."""

    def __init__(self, obj: Any, source: Source, recast: DtypeCast, damaged: Callable[[Record], Exception]) -> None:
        self._pickled = Pickled(obj, replaced=recast.replaced)
        self._layout = plan_archive(self._pickled)
        self.nbytes = (self._layout or self._pickled).nbytes
        storages = self._layout.storages if self._layout else self._pickled.storages
        self._storages = [storage for storage in storages if storage.nbytes()]
        self.runs = TensorStream(source, [recast.run(storage) for storage in self._storages], damaged)

    def write(self, writer: TrackingWriter) -> None:
        layout, pickled = self._layout, self._pickled
        if layout is not None:
            layout.write(writer.write, writer.write, self.runs)
            return
        for storage, pieces in zip(self._storages, self.runs, strict=True):
            memory, position = memory_of(storage), 0
            for piece in pieces:
                memory[position : position + len(piece)] = piece
                position += len(piece)
        writer.unmasked(lambda: pickled.torch_save(writer))


class _SafetensorsFile:
    """Tensors by name, each apart from the others."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        metadata: Mapping[str, str],
        source: Source,
        recast: DtypeCast,
        damaged: Callable[[Record], Exception],
    ) -> None:
        self._header, order = safetensors_writer.outlined(tensors, recast.dtype_of, metadata)
        runs = []
        for tensor in map(tensors.__getitem__, order):
            record = recast.record_of(tensor.untyped_storage())
            runs.append(StreamedTensor(tensor.detach(), recast.dtype_of(tensor), record))
        self.nbytes = len(self._header) + sum(run.nbytes for run in runs)
        self.runs = TensorStream(source, runs, damaged)

    def write(self, writer: TrackingWriter) -> None:
        writer.write(self._header)
        for pieces in self.runs:
            for piece in pieces:
                writer.write(piece)


def _without_aliases(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], present: Any
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors to write of a safetensors file, where metadata names the others as the same; and that metadata."""
    aliases = {alias for alias, name in metadata.items() if alias != name and _is_one(present, alias, name)}
    written = {name: each for name, each in tensors.items() if name not in aliases or metadata[name] not in tensors}
    kept = tensors.keys() - written.keys()
    return written, {name: text for name, text in metadata.items() if name not in aliases or name in kept}


def _is_one(present: Any, first: str, second: str) -> bool:
    return first in present and second in present and present[first] is present[second]


def _flat(obj: Any, path: str, drop_values: bool) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The tensors of a nested object by their dotted names, and the names of all else."""
    if not isinstance(obj, Mapping):
        kind = f"it holds a {type(obj).__name__}, no mapping of names to tensors"
        msg = f"{path} cannot become a safetensors file: {kind}. Write a torch file."
        raise ValueError(msg)
    tensors: dict[str, torch.Tensor] = {}
    values = []
    for name, value in names.walk(obj) if obj else ():
        if not isinstance(value, torch.Tensor):
            values.append(name)
        elif name in tensors:
            msg = f"{path} cannot become a safetensors file: it has two tensors of the name {name!r}. Rename one."
            raise ValueError(msg)
        else:
            tensors[name] = value
    if values and not drop_values:
        what = f"a safetensors file holds tensors alone, and these entries are none: {names.shown(values)}"
        msg = f"{path} cannot become a safetensors file as it is: {what}."
        msg += " Leave them out (--drop-values, or drop_values=True), or write a torch file."
        raise ValueError(msg)
    return tensors, tuple(values)
