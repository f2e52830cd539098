"""A sharded checkpoint as the nested state dict that it was, in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.checkpoint_info import CheckpointInfo, TensorInfo
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.folder import Folder
from fsspec_csx.formats.dcp.manifest import ItemLocation
from fsspec_csx.formats.dcp.reader import TensorRead, check_shards, load_bytes, read_bytes, read_tensors
from fsspec_csx.formats.sniff import AGAIN
from fsspec_csx.tensors import names
from fsspec_csx.tensors.names import Choice, Keys


class ManifestEntry:
    """An entry of a checkpoint, before it is read.

    Attributes:
        name: as in the manifest.
        tensor: what the manifest says of it; None if it is no tensor.
    """

    def __init__(self, name: str, tensor: TensorStorageMetadata | None) -> None:
        self.name = name
        self.tensor = tensor


def read(
    folder: Folder,
    metadata: Metadata,
    *,
    keys: Keys | None = None,
    map_location: Any = None,
    weights_only: bool = True,
    advance: Callable[[int], object] = lambda count: None,
) -> Any:
    """What a sharded checkpoint holds, or a part of it.

    Args:
        folder: where it lies.
        metadata: its manifest.
        keys: see ``checkpoint.load``.
        map_location: the device of the tensors, or its name; None for the CPU.
        weights_only: see ``torch.load``; if False, values that are no tensors may run any code.
        advance: called many times with the number of bytes of tensors that were read.

    Raises:
        CheckpointError: if it is not what it should be.
        TypeError: if ``map_location`` is no device.
        OSError: what the filesystem raised; FileNotFoundError is among it.
    """
    if not isinstance(map_location, (str, torch.device, type(None))):
        msg = f"{folder.name} is sharded, and its tensors have no locations to map. Give a device, or its name."
        raise TypeError(msg)
    state = nested(metadata)
    if keys is not None:
        state = names.select(state, Choice(state, keys, folder.name))
    entries = [entry for _, entry in names.walk(state) if isinstance(entry, ManifestEntry)]
    filled = {entry.name: empty(folder, metadata, entry, map_location) for entry in entries if entry.tensor}
    parts = [wanted(folder, metadata, entry, filled[entry.name]) for entry in entries if entry.tensor]
    if map_location is None or torch.device(map_location).type != "meta":
        read_tensors(folder, [each for of_tensor in parts for each in of_tensor], advance=advance)
    return replaced(state, {**filled, **values(folder, metadata, entries, weights_only=weights_only)})


def describe(folder: Folder, metadata: Metadata) -> CheckpointInfo:
    """What a sharded checkpoint holds, without its tensors' data; its size is that of its items.

    Args:
        folder: where it lies.
        metadata: its manifest.

    Raises:
        CheckpointError: if it is not what it should be.
        OSError: what the filesystem raised; FileNotFoundError is among it.
    """
    named = [(name, entry) for name, entry in names.walk(nested(metadata)) if isinstance(entry, ManifestEntry)]
    tensors = {
        name: TensorInfo(
            entry.tensor.properties.dtype,
            tuple(entry.tensor.size),
            entry.tensor.size.numel() * entry.tensor.properties.dtype.itemsize,
        )
        for name, entry in named
        if entry.tensor
    }
    found = values(folder, metadata, [entry for _, entry in named], partial=True)
    others = {name: found[entry.name] for name, entry in named if not entry.tensor}
    size = sum(
        each.length for each in {(p.relative_path, p.offset): p for p in metadata.storage_data.values()}.values()
    )
    return CheckpointInfo(folder.name, "distributed", "torch.distributed.checkpoint", size, tensors, others, {})


def nested(metadata: Metadata) -> dict[str, Any]:
    """The state dict that was saved, with a ``ManifestEntry`` in place of each tensor and value."""
    entries = {name: ManifestEntry(name, _tensor(each)) for name, each in metadata.state_dict_metadata.items()}
    root: dict[Any, Any] = {}
    for name, (*above, last) in manifest.paths_of(metadata).items():
        inner = root
        for key in above:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                return {**entries}
        inner[last] = entries[name]
    return _unmarked({key: _closed(value) for key, value in root.items()})


def values(
    folder: Folder,
    metadata: Metadata,
    entries: list[ManifestEntry],
    *,
    weights_only: bool = True,
    partial: bool = False,
) -> dict[str, Any]:
    """The values of those entries that are no tensors, by their names in the manifest.

    If partial, objects of unknown classes are placeholders.
    """
    others = [entry for entry in entries if entry.tensor is None]
    places = [stored(folder, metadata, MetadataIndex(entry.name)) for entry in others]
    blobs = read_bytes(folder, places)
    return {
        entry.name: load_bytes(
            data, name=f"{entry.name!r} in {folder.name}", weights_only=weights_only, partial=partial
        )
        for entry, data in zip(others, blobs, strict=True)
    }


def wanted(folder: Folder, metadata: Metadata, entry: ManifestEntry, target: torch.Tensor) -> list[TensorRead]:
    """What is to be read to fill a tensor."""
    assert entry.tensor is not None
    found = []
    for chunk in entry.tensor.chunks:
        part = target
        for dimension, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            part = part.narrow(dimension, start, length)
        place = stored(folder, metadata, MetadataIndex(entry.name, chunk.offsets))
        found.append(TensorRead(entry.name, place, (0,) * part.dim(), part))
    return found


def empty(
    folder: Folder, metadata: Metadata, entry: ManifestEntry, device: torch.device | str | None = None
) -> torch.Tensor:
    """A tensor to be filled.

    Raises:
        InvalidCheckpointError: if its items are too short for it.
    """
    tensor = entry.tensor
    assert tensor is not None
    covered = sum(chunk.sizes.numel() for chunk in tensor.chunks)
    there = sum(stored(folder, metadata, MetadataIndex(entry.name, chunk.offsets)).length for chunk in tensor.chunks)
    if covered != tensor.size.numel() or there < covered * tensor.properties.dtype.itemsize:
        reason = f"{folder.name} is damaged: {entry.name!r} has {covered} of {tensor.size.numel()} elements."
        raise InvalidCheckpointError(reason, AGAIN)
    try:
        return torch.empty(tensor.size, dtype=tensor.properties.dtype, device=device or "cpu")
    except RuntimeError:
        check_shards(
            folder, [stored(folder, metadata, MetadataIndex(entry.name, each.offsets)) for each in tensor.chunks]
        )
        raise


def replaced(value: Any, found: dict[str, Any]) -> Any:
    """The same nesting with what was read in place of each entry."""
    if isinstance(value, ManifestEntry):
        return found[value.name]
    if isinstance(value, list):
        return [replaced(each, found) for each in value]
    return {key: replaced(each, found) for key, each in value.items()}


def stored(folder: Folder, metadata: Metadata, index: MetadataIndex) -> ItemLocation:
    """Where an item lies.

    Raises:
        InvalidCheckpointError: if the manifest does not tell.
    """
    place: ItemLocation | None = metadata.storage_data.get(index)
    if place is None:
        raise InvalidCheckpointError(f"The manifest of {folder.name} has no place for {index.fqn!r}.", AGAIN)
    if getattr(place, "transform_descriptors", None):
        reason = f"{index.fqn!r} in {folder.name} was written through an extension of torch's own writer."
        raise InvalidCheckpointError(reason, "Read it with torch's own reader.")
    return place


def _tensor(tensor: Any) -> TensorStorageMetadata | None:
    return tensor if isinstance(tensor, TensorStorageMetadata) else None


def _closed(value: Any) -> Any:
    """Nested dicts, those with numbers for keys made lists, which close up."""
    if not isinstance(value, dict):
        return value
    if all(isinstance(key, int) for key in value):
        return [_closed(value[key]) for key in sorted(value)]
    return _unmarked({key: _closed(each) for key, each in value.items()})


def _unmarked(mapping: dict[Any, Any]) -> dict[Any, Any]:
    return {key[0] if isinstance(key, tuple) else key: each for key, each in mapping.items()}
