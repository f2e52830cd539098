"""Conversion: copies a checkpoint into a file of another format or dtype, a few pieces at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from fsspec.callbacks import Callback

from fsspec_csx.formats import placeholders, reader
from fsspec_csx.formats.base import Converted, ConvertOptions
from fsspec_csx.formats.damage import wrong_checksum
from fsspec_csx.formats.io_wrappers import TrackingWriter
from fsspec_csx.formats.safetensors import writer as safetensors_writer
from fsspec_csx.formats.torch_zip.archive_writer import plan_archive
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.tensors import names, torch_compat
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.memory import reserved
from fsspec_csx.tensors.names import Choice, place_of
from fsspec_csx.tensors.source import Source, memory_of
from fsspec_csx.tensors.tensor_stream import StreamedTensor, TensorStream


class Conversion:
    """A checkpoint to convert.

    Few of its tensors are in memory at a time, or all if ``load`` reads the file whole.

    Raises:
        CheckpointError: if the source is invalid, or has no entry with a name in ``keys``.
    """

    def __init__(self, source: Source, options: ConvertOptions) -> None:
        keys, format = reader.begin(source, options.keys, options.name)
        found = reader.structure(source, options.name)
        obj = found.obj if keys is None else names.select(found.obj, Choice(found.obj, keys, options.name))
        format.refuse_unread(obj, options.name)
        self._recast = DtypeCast(found.records, options.dtype)
        self._metadata = format.safetensors_metadata(source)
        self._source, self._options, self._present, self._obj = source, options, found.obj, obj
        self._dropped: tuple[str, ...] = ()
        self._separated: tuple[str, ...] = ()
        self._overflowed: list[StreamedTensor] = []

    def torch_file(self) -> TorchFile:
        """Return the torch file of the whole checkpoint; refuse objects of unknown classes."""
        placeholders.refuse(self._obj, self._options.name)
        return TorchFile(self._obj, self._source, self._recast, self._damaged)

    def safetensors_file(self) -> SafetensorsFile:
        """Return the safetensors file of the tensors; raise a ValueError if the format cannot hold them."""
        tensors, self._dropped = _flat(self._obj, self._options.name, self._options.drop_values)
        tensors, metadata = _without_aliases(tensors, self._metadata, self._present)
        made = self._part(tensors, metadata)
        # Only now, because it needs tensors that the format can hold.
        self._separated = tuple(sorted({second for _, second in safetensors_writer.overlapping(tensors)}))
        return made

    def safetensors_files(
        self, split: Callable[[Mapping[str, int]], list[list[str]]]
    ) -> tuple[list[tuple[list[str], SafetensorsFile]], dict[str, str]]:
        """Return several safetensors files of the tensors; ``split`` divides their names, given with sizes in bytes.

        Returns:
            Each file with the names in it; and the names of duplicate tensors, each with the name that is kept.
        """
        tensors, self._dropped = _flat(self._obj, self._options.name, self._options.drop_values)
        tensors, aliases = safetensors_writer.without_duplicates(safetensors_writer.named_tensors(tensors))
        sizes = {name: each.numel() * self._recast.dtype_of(each).itemsize for name, each in tensors.items()}
        made = [(part, self._part({name: tensors[name] for name in part}, {})) for part in split(sizes)]
        self._separated = tuple(sorted({second for _, second in safetensors_writer.overlapping(tensors)}))
        return made, aliases

    def write(self, file: TorchFile | SafetensorsFile, target: Target, progress: Callback) -> Converted:
        """Write a file, and return what was written; see ``Format.convert``."""
        meter = ProgressMeter(progress, file.nbytes, estimated=True)
        with atomic_write(target.fs, target.path, exclusive=self._options.exclusive) as opened:
            size = self.stream(file, opened, meter.advance)
            self.verify_whole()
        meter.finish()
        return self.converted(size)

    def stream(self, file: TorchFile | SafetensorsFile, opened: Any, advance: Callable[[int], object]) -> int:
        """Write to an open file, check the tensors, and return the number of bytes."""
        count = 0

        def counted(more: int) -> None:
            nonlocal count
            count += more
            advance(more)

        file.write(TrackingWriter(opened, counted))
        self._overflowed += file.stream.overflowed
        return count

    def verify_whole(self) -> None:
        """Check a source without checksums when all is written, see ``Source.verify_whole``."""
        self._source.verify_whole(self._options.name)

    def converted(self, size: int) -> Converted:
        """Summarize what was written, in ``size`` bytes."""
        present = [(name, value) for name, value in names.walk(self._obj) if isinstance(value, torch.Tensor)]
        cast = sum(self._recast.dtype_of(tensor) != tensor.dtype for _, tensor in present)
        places = {place_of(run.tensor) for run in self._overflowed}
        infinite = [name for name, value in present if place_of(value) in places and value.dtype.is_floating_point]
        return Converted(
            size, len(present), cast, self._dropped, self._separated, tuple(infinite) if self._overflowed else ()
        )

    def _part(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> SafetensorsFile:
        return SafetensorsFile(tensors, metadata, self._source, self._recast, self._damaged)

    def _damaged(self, record: Record) -> Exception:
        return wrong_checksum(self._options.name, names.of_records(self._present, [record]))


class TorchFile:
    """The torch file of an object, with its tensors cast."""

    def __init__(self, obj: Any, source: Source, recast: DtypeCast, damaged: Callable[[Record], Exception]) -> None:
        self._pickled = Pickled(obj, replaced=recast.replaced)
        self._layout = plan_archive(self._pickled)
        self.nbytes = (self._layout or self._pickled).nbytes
        self._storages = [storage for storage in self._pickled.storages if storage.nbytes()]
        self.stream = TensorStream(source, [recast.streamed(storage) for storage in self._storages], damaged)

    def write(self, writer: TrackingWriter) -> None:
        pickled = self._pickled
        with self.stream.reading() as contents:
            if self._layout is not None:
                self._layout.write(writer.write, writer.borrow_summed, contents)
                return
            for storage, pieces in zip(self._storages, contents, strict=True):
                memory, position = memory_of(storage), 0
                for piece in pieces:
                    memory[position : position + len(piece)] = piece
                    position += len(piece)
        writer.unmasked(lambda: pickled.torch_save(writer))


class SafetensorsFile:
    """A safetensors file of tensors by name; none shares its bytes with another."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        metadata: Mapping[str, str],
        source: Source,
        recast: DtypeCast,
        damaged: Callable[[Record], Exception],
    ) -> None:
        self.header, order = safetensors_writer.header_and_order(tensors, recast.dtype_of, metadata)
        streamed = [
            StreamedTensor(each.detach(), recast.dtype_of(each), recast.record_of(each.untyped_storage()))
            for each in map(tensors.__getitem__, order)
        ]
        self.nbytes = len(self.header) + sum(each.nbytes for each in streamed)
        self.stream = TensorStream(source, streamed, damaged)

    def write(self, writer: TrackingWriter) -> None:
        writer.write(self.header)
        with self.stream.reading() as contents:
            for piece in itertools.chain.from_iterable(contents):
                writer.write(piece)


_PACKED = getattr(torch, "float4_e2m1fn_x2", None)  # two values per byte; torch cannot cast it


class DtypeCast:
    """Replaces the floating-point tensors of a file with tensors of another dtype, to pickle in their place.

    Tensors that share a storage still share one, unless only some of them are cast.
    """

    def __init__(self, records: Iterable[Record], dtype: torch.dtype | None) -> None:
        self._records = {record.storage.data_ptr(): record for record in records}
        self._dtype = dtype
        self._storages: dict[tuple[int, torch.dtype], torch.UntypedStorage] = {}
        self._streamed: dict[int, StreamedTensor] = {}

    def dtype_of(self, tensor: torch.Tensor) -> torch.dtype:
        """Return the dtype that a tensor will have."""
        if self._dtype is None or not tensor.dtype.is_floating_point or tensor.dtype == _PACKED:
            return tensor.dtype
        return self._dtype

    def record_of(self, storage: torch.UntypedStorage) -> Record | None:
        """Return the record of a storage of the file; None if its bytes are in memory."""
        return self._records.get(storage.data_ptr())

    def replaced(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the tensor that replaces one to cast; None if the tensor stays as it is."""
        dtype = self.dtype_of(tensor)
        if dtype == tensor.dtype:
            return None
        is_parameter = type(tensor) is torch.nn.Parameter
        if not (is_parameter or type(tensor) is torch.Tensor) or place_of(tensor) is None:
            return tensor.detach().to(dtype).requires_grad_(tensor.requires_grad)
        made = torch.empty(0, dtype=dtype, device="cpu")
        made.set_(self._storage(tensor, dtype), tensor.storage_offset(), tensor.shape, tensor.stride())
        made = torch_compat.neg_view(made) if tensor.is_neg() else made
        made = torch.nn.Parameter(made) if is_parameter else made
        vars(made).update(vars(tensor))
        return made.requires_grad_(tensor.requires_grad)

    def streamed(self, storage: torch.UntypedStorage) -> StreamedTensor:
        """Return what to write for a storage, which may be of the file, of a replacement, or in memory."""
        if found := self._streamed.get(torch_compat.address(storage)):
            return found
        whole = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
        return StreamedTensor(whole, torch.uint8, self.record_of(storage))

    def _storage(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.UntypedStorage:
        old = tensor.untyped_storage()
        key = torch_compat.address(old), tensor.dtype
        if key not in self._storages:
            count = old.nbytes() // tensor.element_size()
            new = reserved(count * dtype.itemsize, torch.device("cpu"))
            whole = torch.empty(0, dtype=tensor.dtype, device="cpu").set_(old, 0, (count,), (1,))
            self._storages[key] = new
            self._streamed[torch_compat.address(new)] = StreamedTensor(whole, dtype, self.record_of(old))
        return self._storages[key]


def _without_aliases(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], present: Any
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors to write, without those that the metadata names as duplicates, and the metadata that stays."""
    aliases = {alias for alias, name in metadata.items() if alias != name and _is_one(present, alias, name)}
    written = {name: each for name, each in tensors.items() if name not in aliases or metadata[name] not in tensors}
    kept = tensors.keys() - written.keys()
    return written, {name: text for name, text in metadata.items() if name not in aliases or name in kept}


def _is_one(present: Any, first: str, second: str) -> bool:
    return first in present and second in present and present[first] is present[second]


def _flat(obj: Any, path: str, drop_values: bool) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return the tensors of a nested object by dotted name, and the names of all other entries."""
    if not isinstance(obj, Mapping):
        kind = f"it holds a {type(obj).__name__}, not a mapping of names to tensors"
        msg = f"{path} cannot become a safetensors file: {kind}. Write a torch file."
        raise ValueError(msg)
    tensors: dict[str, torch.Tensor] = {}
    values = []
    for name, value in names.walk(obj) if obj else ():
        if not isinstance(value, torch.Tensor):
            values.append(name)
        elif name in tensors:
            msg = f"{path} cannot become a safetensors file: it has two tensors named {name!r}. Rename one."
            raise ValueError(msg)
        else:
            tensors[name] = value
    if values and not drop_values:
        what = f"a safetensors file holds only tensors, and these entries are not: {names.shown(values)}"
        msg = f"{path} cannot become a safetensors file: {what}."
        msg += " Leave them out (--drop-values, or drop_values=True), or write a torch file."
        raise ValueError(msg)
    return tensors, tuple(values)
