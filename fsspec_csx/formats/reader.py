"""Reads checkpoints of all formats, told by their content: whole, in part, into what exists, or their structure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.errors import UnsafeCheckpointError
from fsspec_csx.formats import sniff
from fsspec_csx.formats.cerebras.source import CerebrasSource, refuse_unread
from fsspec_csx.formats.checkpoint_info import CheckpointInfo, TensorInfo
from fsspec_csx.formats.composite_source import CompositeSource
from fsspec_csx.formats.safetensors import layout as safetensors_layout
from fsspec_csx.formats.safetensors import reader as safetensors_reader
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import opaque, placeholders, structure_limits
from fsspec_csx.formats.torch_zip import reader as torch_zip_reader
from fsspec_csx.tensors import names
from fsspec_csx.tensors.into import Casts, fill_into
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.map_location import LocationMapper, reserved
from fsspec_csx.tensors.match import Match
from fsspec_csx.tensors.names import Choice, Keys, place_of
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION


def read(
    source: Source,
    *,
    name: str,
    keys: Keys | None = None,
    map_location: MAP_LOCATION = None,
    weights_only: bool = True,
) -> Any:
    """What a checkpoint holds, or a part of it.

    Args:
        source: the file.
        name: what errors call it.
        keys: as of ``checkpoint.load``; if given, a file may have objects of unknown classes among the others.
        map_location: as of ``torch.load``.
        weights_only: as of ``torch.load``; if False, the file may run any code.

    Raises:
        CheckpointError: if the file is not what it should be.
        Exception: what the file raised, or torch where it is not the file's fault.
    """
    if isinstance(source, CompositeSource):
        return source.load(keys=keys, map_location=map_location, weights_only=weights_only)
    wanted = None if keys is None else ()
    found = _structure(source, name, map_location, weights_only, wanted, partial=keys is not None)
    if keys is not None:
        structure_limits.check_entries(found.obj, name)
        choice = Choice(found.obj, keys, name)
        chosen = _part(found, choice)
        placeholders.refuse(chosen.obj, name)
        if found.left:
            # Only now is it known what has to go to other devices.
            positions = {record.offset for record in chosen.records}
            found = _structure(source, name, map_location, weights_only, positions, partial=True)
            chosen = _part(found, choice)
        found = chosen
    if isinstance(source, CerebrasSource):
        refuse_unread(found.obj, name)
    _complete(source, found, name)
    return found.obj


def read_into(source: Source, into: Any, *, name: str, keys: Keys | None = None, weights_only: bool = True) -> None:
    """Fill an object with what a checkpoint holds, or a part of it.

    Args:
        source: the file.
        into: as of ``checkpoint.load``.
        name: what errors call the file.
        keys: as of ``checkpoint.load``.
        weights_only: as of ``torch.load``; if False, the file may run any code.

    Raises:
        CheckpointError: if the file is not what it should be, or does not fit.
        Exception: what the file raised, or torch where it is not the file's fault.
    """
    found = _structure(source, name, "cpu", weights_only, partial=keys is not None)
    structure_limits.check_use(found.obj, name)
    choice = Choice(found.obj, keys, name)
    placeholders.refuse(names.select(found.obj, choice), name)
    if isinstance(source, CerebrasSource):
        refuse_unread(names.select(found.obj, choice), name)
    flattened = isinstance(source, (CompositeSource, CerebrasSource))
    match = Match(found.obj, into, choice, partial=keys is not None, path=name, flattened=flattened)
    casts = Casts()
    if wrong := fill_into(source, found, match.pairs, casts):
        raise torch_archive.damaged(name, names.of_records(found.obj, wrong))
    match.replace_values()
    casts.warn()


def describe(source: Source, *, name: str) -> CheckpointInfo:
    """What a checkpoint holds, without its tensors' data; of an object of an unknown class, a ``Placeholder``.

    Args:
        source: the file.
        name: what errors call it.

    Raises:
        CheckpointError: if the file is not what it should be.
        Exception: what the file raised.
    """
    if isinstance(source, (CompositeSource, CerebrasSource)):
        return source.info()
    tensors, values = {}, {}
    for key, value in names.walk(_without_data(source, name)):
        if isinstance(value, torch.Tensor):
            nbytes = torch.Tensor.numel(value) * value.dtype.itemsize  # attributes may hide methods
            tensors[key] = TensorInfo(value.dtype, _shape(value), nbytes)
        else:
            values[key] = value
    if _is_safetensors(source):
        told = safetensors_reader.metadata(source)
        kind, writer = "safetensors", "safetensors"
    elif is_legacy(source):
        told = {}
        kind, writer = "torch", "torch.save, in the format before torch 1.6"
    else:
        told = torch_archive.metadata(source)
        version, form = told.get("version", "unknown"), told.get(".format_version")
        kind, writer = "torch", f"torch.save, as a zip archive of version {version}"
        writer += f" (format version {form})" if form else ""
    return CheckpointInfo(name, kind, writer, source.size, tensors, values, told)


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    if not tensor.is_nested:
        return tuple(tensor.shape)
    return (torch.Tensor.size(tensor, 0), *(-1 for _ in range(torch.Tensor.dim(tensor) - 1)))


def structure(source: Source, name: str, *, bounded: bool = False) -> LazyObject:
    """What a checkpoint holds, on the CPU, its tensors not filled; or filled, where the file is read whole.

    An object of an unknown class is a ``Placeholder``.

    Args:
        source: the file.
        name: what errors call it.
        bounded: whether tensors of a file that would be read whole may have no data, for what has to do without them.

    Raises:
        CheckpointError: if the file is not what it should be.
        Exception: what the file raised.
    """
    if isinstance(source, (CompositeSource, CerebrasSource)):
        return _structure(source, name, "cpu", True, partial=True)
    if bounded and not is_legacy(source) and not (_is_safetensors(source) or torch_archive.read(source, name)):
        found = LazyObject(_without_data(source, name), [])
    else:
        found = _structure(source, name, "cpu", True, partial=True)
    structure_limits.check_use(found.obj, name)
    return found


def is_legacy(source: Source) -> bool:
    """Whether a file is of the format before torch 1.6."""
    return sniff.is_legacy(_head(source))


def _without_data(source: Source, name: str) -> Any:
    try:
        found = _structure(source, name, "meta", True, partial=True).obj
    except NotImplementedError:  # torch has no quantized and no nested tensors without data
        found = _structure(source, name, "cpu", True, partial=True).obj
    structure_limits.check_entries(found, name)
    return found


def _is_safetensors(source: Source) -> bool:
    return safetensors_layout.is_safetensors(_head(source), source.size)


def _head(source: Source) -> bytes:
    (head,) = source.bytes_of([(0, min(source.size, sniff.HEAD))])
    return head


def _structure(
    source: Source,
    name: str,
    map_location: Any,
    weights_only: bool,
    wanted: Collection[int] | None = None,
    *,
    partial: bool = False,
) -> LazyObject:
    """With a ``CompositeSource`` only for the CPU; if partial, with placeholders for objects of unknown classes."""
    if isinstance(source, CompositeSource):
        return source.structure(weights_only=weights_only, partial=partial)
    if isinstance(source, CerebrasSource):
        found = _placed(source, source.tensors(), name, map_location, wanted)
        return replace(found, obj=source.rebuild(found.obj, weights_only=weights_only))
    if not _is_safetensors(source):
        try:
            return torch_zip_reader.structure(
                source, name=name, map_location=map_location, weights_only=weights_only, wanted=wanted
            )
        except UnsafeCheckpointError:
            known = opaque.structure(source, name=name, map_location=map_location, wanted=wanted) if partial else None
            if known is None:
                raise
            return known
    return _placed(source, safetensors_reader.structure(source, name=name), name, map_location, wanted)


def _placed(
    source: Source, found: LazyObject, name: str, map_location: Any, wanted: Collection[int] | None
) -> LazyObject:
    """A lazy object of tensors on the CPU, these moved to where ``map_location`` has them."""
    places = LocationMapper(map_location)
    if places.stays("cpu"):
        return found
    if wanted is not None and not wanted:
        return replace(found, left=True)
    return _moved(source, found, name, places, wanted)


def _moved(
    source: Source, found: LazyObject, name: str, places: LocationMapper, wanted: Collection[int] | None
) -> LazyObject:
    """A lazy object of tensors on the CPU, those with wanted bytes moved to where they belong."""
    device = places.device("cpu")
    records = {record.name: record for record in found.records}
    obj: dict[str, torch.Tensor] = {}
    moved = []
    first: dict[int, str] = {}
    for key, tensor in found.obj.items():
        if (owner := first.setdefault(id(tensor), key)) != key:  # another name of the same tensor
            obj[key] = obj[owner]
            continue
        record = records.get(key)
        storage: Any = tensor.untyped_storage()
        if record is None or wanted is None or record.offset in wanted:
            if device is None:
                # The caller's map_location is to see the storage as it will be.
                _complete(source, LazyObject({key: tensor}, [record] if record else []), name)
                storage = places.placed(storage, "cpu")
            else:
                storage = reserved(storage.nbytes(), device)
                moved += [replace(record, storage=storage)] if record and device.type != "meta" else []
        obj[key] = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        obj[key].set_(storage, 0, tensor.shape, tensor.stride())
    return LazyObject(obj, moved)


def _part(found: LazyObject, choice: Choice) -> LazyObject:
    obj = names.select(found.obj, choice)
    used = {place_of(value) for _, value in names.walk(obj)}
    return LazyObject(obj, [each for each in found.records if (each.storage.device, each.storage.data_ptr()) in used])


def _complete(source: Source, found: LazyObject, name: str) -> None:
    torch_zip_reader.complete(source, found, name=name)
