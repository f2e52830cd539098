"""The format of torch.distributed.checkpoint: folders of shards and a manifest."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from fsspec.callbacks import Callback
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import verify_report
from fsspec_csx.formats.base import ON_CPU, Converted, ConvertOptions, Format, ReadOptions
from fsspec_csx.formats.checkpoint_info import CheckpointInfo
from fsspec_csx.formats.dcp.boxes import Box
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.formats.dcp.manifest import ItemLocation, plain_of
from fsspec_csx.formats.dcp.reader import opened
from fsspec_csx.formats.dcp.slices import sliced
from fsspec_csx.formats.dcp.source import ShardedSource
from fsspec_csx.formats.verify_report import Report, Sum
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage import folder as storage_folder
from fsspec_csx.tensors import names, summaries
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.names import Keys
from fsspec_csx.tensors.source import Source


class DistributedFormat(Format[ShardedSource]):
    """Folders of shards."""

    name = "distributed"
    flattened = True

    def open_folder(
        self, folder: storage_folder.Folder, names: Callable[[], Collection[str]]
    ) -> contextlib.AbstractContextManager[Source | None]:
        """Open the folder. The registry has already found the manifest."""
        return contextlib.closing(ShardedSource(ShardedFolder(folder.fs, folder.path, folder.name)))

    def structure(self, source: ShardedSource, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        """Read the structure to the CPU."""
        return source.structure(weights_only=options.weights_only, partial=options.partial)

    def load(self, source: ShardedSource, keys: Keys | None, options: ReadOptions) -> Any:
        """Read the parts of tensors directly into their memory."""
        return source.state.read(
            keys=keys,
            map_location=options.map_location,
            weights_only=options.weights_only,
            advance=source.advance,
        )

    def info(self, source: ShardedSource, name: str) -> CheckpointInfo:
        return source.state.describe()

    def examine(self, source: ShardedSource, name: str, compute: Sum) -> Report:
        """Check each item as a file, with the checksum of each record, and compare it with the manifest."""
        found = Report()
        shards: dict[str, dict[int, _Item]] = {}
        for item in _items(source, found):
            shards.setdefault(item.place.relative_path, {}).setdefault(item.place.offset, item)
        for shard, items in shards.items():
            _examine_shard(source, shard, list(items.values()), found)
        return found

    def convert(self, source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
        self.refuse_cast(options)
        # A dynamic import: formats must not import distributed (see fsspec_csx/README.md).
        write = import_module("fsspec_csx.distributed.conversion").write_sharded
        written: Converted = write(source, options, target, progress)
        return written


@dataclass(frozen=True)
class _Item:
    """A part of a shard that is a file of torch.save.

    Attributes:
        name: of its entry in the manifest.
        tensor: its dtype and shape in the manifest; None for a value.
    """

    name: str
    place: ItemLocation
    tensor: tuple[torch.dtype, tuple[int, ...]] | None


def _items(source: ShardedSource, found: Report) -> Iterator[_Item]:
    """Yield all items that the manifest names."""
    for name, entry in source.metadata.state_dict_metadata.items():
        parts: list[tuple[MetadataIndex, tuple[torch.dtype, tuple[int, ...]] | None]] = [(MetadataIndex(name), None)]
        if isinstance(entry, TensorStorageMetadata):
            if flaw := _flaw(entry):
                found.damage.append(f"the parts of {name!r} {flaw}")
            dtype = entry.properties.dtype
            parts = [(MetadataIndex(name, each.offsets), (dtype, tuple(each.sizes))) for each in entry.chunks]
        for index, tensor in parts:
            try:
                yield _Item(name, source.state.item(index), tensor)
            except InvalidCheckpointError as error:
                if index in source.metadata.storage_data:  # torch's own reader may be able to read it
                    found.unchecked += 1
                    found.notes.append(error.reason.rstrip("."))
                else:
                    found.damage.append(f"the manifest has no place for {name!r}")


def _examine_shard(source: ShardedSource, shard: str, items: list[_Item], found: Report) -> None:
    try:
        with opened(source.folder, shard) as file:
            cut = [each for each in items if each.place.offset + each.place.length > file.size]
            if cut:
                end = max(each.place.offset + each.place.length for each in cut)
                what = f"it has {file.size} of at least {end} bytes, and not all of {_names(cut)}"
                found.damage.append(f"the shard {shard} is cut short: {what}")
            there = [each for each in items if each.place.offset + each.place.length <= file.size]
            for batch in sliced(file, there, lambda each: each.place):
                for item, part in batch:
                    found.add(_examined(item, Source(part, part.size)), repr(item.name))
                    source.advance(item.place.length)
    except FileNotFoundError:
        found.damage.append(f"the shard {shard} is missing, with {_names(items)}")


def _names(items: Sequence[_Item]) -> str:
    return names.shown(list(dict.fromkeys(each.name for each in items)))


def _examined(item: _Item, part: Source) -> Report:
    return verify_report.examine(
        part, name=repr(item.name), compute=lambda memory, before: 0, misfit=lambda held: _misfit(item, held)
    )


def _misfit(item: _Item, held: LazyObject) -> str:
    """Describe how an item differs from the manifest; empty if it does not."""
    if item.tensor is None:
        return ""
    if not isinstance(held.obj, torch.Tensor):
        return f"it is no tensor, but {summaries.short(held.obj)}"
    dtype, shape = item.tensor
    if (held.obj.dtype, tuple(held.obj.shape)) != (dtype, shape):
        return f"it is a {summaries.entry(held.obj)}, and in the manifest one of {str(dtype)[6:]} {shape}"
    plain = plain_of(item.place)
    if plain is None or not plain.nbytes:
        return ""
    record = held.records[0] if held.records else None
    start = record.offset + int(held.obj.storage_offset()) * dtype.itemsize if record else None
    if (plain.start, plain.dtype, plain.shape) != (start, dtype, shape):
        return "its bytes are not where the manifest has them"
    crc32 = record.crc32 if record else None
    if None not in (crc32, plain.crc32) and crc32 != plain.crc32:
        return "its checksum is not the one that the manifest has"
    return ""


# -- parts of a tensor -------------------------------------------------------------------------------------------------


def _flaw(tensor: TensorStorageMetadata) -> str:
    """Describe an invalid division of a tensor into parts; empty if it is valid."""
    shape = tuple(tensor.size)
    boxes = [Box(shape, tuple(each.offsets), tuple(each.sizes)) for each in tensor.chunks]
    if not all(box.fits() for box in boxes):
        return f"reach beyond its shape {shape}"
    boxes = sorted((box for box in boxes if box.count), key=lambda box: box.start)
    if _overlap(boxes):
        return "overlap"
    count = sum(box.count for box in boxes)
    return f"have {count} of its {math.prod(shape)} elements" if count != math.prod(shape) else ""


def _overlap(boxes: Sequence[Box]) -> bool:
    """Return whether any boxes, sorted by start, share an element."""
    reaching: list[Box] = []  # earlier boxes that extend to the first row of this one
    for box in boxes:
        if box.shape:
            reaching = [each for each in reaching if each.start[0] + each.lengths[0] > box.start[0]]
        if any(_meet(each, box) for each in reaching):
            return True
        reaching.append(box)
    return False


def _meet(first: Box, second: Box) -> bool:
    return all(
        max(starts) < min(starts[0] + lengths[0], starts[1] + lengths[1])
        for starts, lengths in zip(
            zip(first.start, second.start, strict=True), zip(first.lengths, second.lengths, strict=True), strict=True
        )
    )


FORMAT = DistributedFormat()
