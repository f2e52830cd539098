"""Reads parts of stored tensors into existing tensors, from several shards at a time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from fsspec_csx.errors import InvalidCheckpointError, UnsafeCheckpointError
from fsspec_csx.formats import placeholders
from fsspec_csx.formats.base import ReadOptions
from fsspec_csx.formats.damage import AGAIN, damaged, wrong_checksum
from fsspec_csx.formats.dcp.boxes import Box
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.formats.dcp.manifest import ItemLocation, Plain, plain_of
from fsspec_csx.formats.dcp.slices import Frames, Item, sliced
from fsspec_csx.formats.reader import complete
from fsspec_csx.formats.torch_zip import reader as torch_zip_reader
from fsspec_csx.storage.files import file_size
from fsspec_csx.storage.threads import run_in_threads
from fsspec_csx.tensors import fill, memory
from fsspec_csx.tensors.fill import RecordPart
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.names import shown
from fsspec_csx.tensors.source import BareSource, Source, memory_of

T = TypeVar("T")

_FILES = 8  # at a time


@dataclass(frozen=True)
class TensorRead:
    """A part of a stored tensor, and the tensor to fill.

    Attributes:
        name: of the tensor.
        start: the first index of the part in each dimension of the stored tensor.
        target: a tensor with the shape of the part, on any device.
    """

    name: str
    place: ItemLocation
    start: tuple[int, ...]
    target: torch.Tensor


def read_tensors(
    folder: ShardedFolder, wanted: Iterable[TensorRead], *, advance: Callable[[int], object] = lambda count: None
) -> None:
    """Fill tensors.

    Raises:
        FreedTensorError: if tensors to fill have no memory; no tensor is filled then.
        InvalidCheckpointError: if a shard is too short, or the checksum of a tensor that is read whole is wrong.
    """
    wanted = [*wanted]
    memory.check_targets((each.name, each.target) for each in wanted)
    _of_all_shards(folder, wanted, lambda each: each.place, _read_shard, advance)


def read_bytes(folder: ShardedFolder, places: Sequence[ItemLocation]) -> list[bytes]:
    """Return the bytes of items."""
    found: dict[tuple[str, int], bytes] = {}

    def read(folder: ShardedFolder, source: Source, items: Sequence[ItemLocation]) -> None:
        for item, data in zip(items, source.bytes_of([(each.offset, each.length) for each in items]), strict=True):
            found[item.relative_path, item.offset] = data

    _of_all_shards(folder, places, lambda each: each, read)
    return [found[each.relative_path, each.offset] for each in places]


def load_bytes(data: bytes, *, name: str, weights_only: bool = True, partial: bool = False) -> Any:
    """Load the object of an item that torch.save wrote; if ``partial``, objects of unknown classes become placeholders.

    Raises:
        UnsafeCheckpointError: if ``weights_only`` and the item names code that could run; ``io.BytesIO`` is allowed.
    """
    source = Source(io.BytesIO(data), len(data))
    try:
        found = torch_zip_reader.structure(source, name, ReadOptions("cpu", weights_only))
    except UnsafeCheckpointError:
        known = torch_zip_reader.partial_structure(source, name)
        if known is None or not (partial or placeholders.is_free(known.obj)):
            raise
        found = known
    complete(source, found, name=name)
    return found.obj


def _of_all_shards(
    folder: ShardedFolder,
    items: Iterable[T],
    place: Callable[[T], ItemLocation],
    read: Callable[[ShardedFolder, Source, Sequence[T]], None],
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Read items from their shards, from several shards at a time."""
    shards: dict[str, list[T]] = {}
    for each in items:
        shards.setdefault(place(each).relative_path, []).append(each)

    def read_one(name: str, advance: Callable[[int], object]) -> None:
        with opened(folder, name) as source:
            source.advance = advance
            _check_size(folder, name, source, map(place, shards[name]))
            read(folder, source, shards[name])

    if shards:
        run_in_threads(read_one, [*shards], advance, threads=_FILES if folder.threads else 1, name="fsspec_csx-shard")


@contextlib.contextmanager
def opened(folder: ShardedFolder, name: str) -> Iterator[Source]:
    """Open a shard."""
    with folder.reading(name) as file:
        yield BareSource(file, file_size(file))


def check_shards(folder: ShardedFolder, places: Iterable[ItemLocation]) -> None:
    """Check that shards are long enough for the items in them."""
    for each in places:
        with opened(folder, each.relative_path) as source:
            _check_size(folder, each.relative_path, source, [each])


def _check_size(folder: ShardedFolder, name: str, shard: Source, places: Iterable[ItemLocation]) -> None:
    end = max(each.offset + each.length for each in places)
    if end > shard.size:
        what = f"it has {shard.size} of at least {end} bytes"
        raise InvalidCheckpointError(f"The shard {name} of {folder.name} is cut short: {what}.", AGAIN)


# -- tensors of a shard -----------------------------------------------------------------------------------------------


def _read_shard(folder: ShardedFolder, source: Source, wanted: Sequence[TensorRead]) -> None:
    pinned = any(each.target.device.type == "cuda" for each in wanted)
    transfers: list[RecordPart] = []
    unknown: list[TensorRead] = []
    for each in wanted:
        plain = plain_of(each.place)
        if plain is None:
            unknown.append(each)
        else:
            transfers += _transfers(folder, each, plain)
    _run(folder, source, transfers, pinned=pinned)
    frames = Frames()
    for batch in sliced(source, unknown, lambda each: each.place):
        transfers = []
        for each, item in batch:
            if item.whole is not None and (plain := frames.plain_in(item.whole)):
                _deliver(folder, each, plain, item.whole)
            elif plain := _plain_in(folder, each, item, frames):
                transfers += _transfers(folder, each, plain)
        _run(folder, source, transfers, pinned=pinned)


def _run(folder: ShardedFolder, source: Source, transfers: Sequence[RecordPart], *, pinned: bool) -> None:
    if wrong := fill.run(source, transfers, pinned=pinned):
        raise wrong_checksum(folder.name, shown(list(dict.fromkeys(each.name for each in wrong))))


def _transfers(folder: ShardedFolder, wanted: TensorRead, plain: Plain) -> Iterable[RecordPart]:
    """Return the transfers that read a part of a stored tensor into its target."""
    box = _box(folder, wanted, plain.shape)
    if plain.start + plain.nbytes > wanted.place.length:
        raise damaged(folder.name, f"{wanted.name!r} is longer than its item")
    if not box.count:
        return []
    stored = torch.empty(plain.shape, dtype=plain.dtype, device="meta")
    offset, crc32 = wanted.place.offset + plain.start, plain.crc32 if box.whole else None
    record = Record(wanted.name, offset, stored.untyped_storage(), crc32)
    if transfer := fill.direct(record, box.of(stored), wanted.target):
        return [transfer]
    return fill.copies(record, box.of(stored), wanted.target, lambda part, target: target.copy_(part))


def _box(folder: ShardedFolder, wanted: TensorRead, shape: Sequence[int]) -> Box:
    """Return the wanted part of a stored tensor of this shape."""
    box = Box(tuple(shape), wanted.start, tuple(wanted.target.shape))
    if not len(box.start) == len(box.shape) == len(box.lengths) or not box.fits():
        raise damaged(folder.name, f"it has no {box.lengths} at {box.start} of {wanted.name!r}, {box.shape}")
    return box


def _deliver(folder: ShardedFolder, wanted: TensorRead, plain: Plain, item: memoryview) -> None:
    """Copy a part of a tensor out of its item."""
    box = _box(folder, wanted, plain.shape)
    stored = torch.empty(plain.shape, dtype=plain.dtype, device="cpu")
    memory_of(stored.untyped_storage())[:] = item[plain.start : plain.start + plain.nbytes]
    wanted.target.copy_(box.of(stored))


def _plain_in(folder: ShardedFolder, wanted: TensorRead, item: Item, frames: Frames) -> Plain | None:
    """Find how a tensor is stored in an item that the manifest does not describe; return None if it was delivered."""
    name = f"{wanted.name!r} in {folder.name}"
    file = Source(item, item.size)
    found = torch_zip_reader.structure(file, name)
    tensor = found.obj
    if not isinstance(tensor, torch.Tensor):
        raise InvalidCheckpointError(f"{name} is not a tensor.", AGAIN)
    record = found.records[0] if found.records else None
    deferred = tensor.is_conj() or tensor.is_neg()
    if record is not None and type(tensor) is torch.Tensor and tensor.is_contiguous() and not deferred:
        start = record.offset + int(tensor.storage_offset()) * tensor.dtype.itemsize
        crc = record.crc32 if tensor.nbytes == record.storage.nbytes() else None
        plain = Plain(start, tensor.dtype, tuple(tensor.shape), crc)
        if item.whole is None:
            return plain
        frames.learn(plain)
    complete(file, found, name=name)
    wanted.target.copy_(_box(folder, wanted, tensor.shape).of(tensor))
    return None
