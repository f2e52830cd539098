"""Reads a sharded checkpoint as a nested state dict, in one process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.checkpoint_info import CheckpointInfo, TensorInfo
from fsspec_csx.formats.damage import AGAIN, damaged
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.boxes import Box
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.formats.dcp.manifest import ItemLocation
from fsspec_csx.formats.dcp.reader import TensorRead, check_shards, load_bytes, read_bytes, read_tensors
from fsspec_csx.tensors import names
from fsspec_csx.tensors.names import Choice, Keys


@dataclass(frozen=True)
class ManifestEntry:
    """An entry of a checkpoint that is not read yet.

    Attributes:
        name: as in the manifest.
        tensor: its description in the manifest; None for a value.
    """

    name: str
    tensor: TensorStorageMetadata | None

    @property
    def info(self) -> TensorInfo:
        """The description of the tensor."""
        assert self.tensor is not None
        size, dtype = self.tensor.size, self.tensor.properties.dtype
        return TensorInfo(dtype, tuple(size), size.numel() * dtype.itemsize)


class ShardedStateDict:
    """The state dict of a sharded checkpoint."""

    def __init__(self, folder: ShardedFolder, metadata: Metadata) -> None:
        self.folder = folder
        self.metadata = metadata

    @functools.cached_property
    def nested(self) -> dict[str, Any]:
        """The nested state dict, with a ``ManifestEntry`` in place of each tensor and value."""
        found = self.metadata.state_dict_metadata.items()
        entries = {
            name: ManifestEntry(name, each if isinstance(each, TensorStorageMetadata) else None) for name, each in found
        }
        root: dict[Any, Any] = {}
        for name, (*above, last) in manifest.paths_of(self.metadata).items():
            inner = root
            for key in above:
                inner = inner.setdefault(key, {})
                if not isinstance(inner, dict):
                    return {**entries}
            inner[last] = entries[name]
        return _unmarked({key: _closed(value) for key, value in root.items()})

    @property
    def stored(self) -> int:
        """The size of its items in bytes, each counted once."""
        places = self.metadata.storage_data.values()
        return sum({(place.relative_path, place.offset): place.length for place in places}.values())

    def read(
        self,
        *,
        keys: Keys | None = None,
        map_location: Any = None,
        weights_only: bool = True,
        advance: Callable[[int], object] = lambda count: None,
    ) -> Any:
        """Read the state dict or a part of it.

        Raises:
            TypeError: if ``map_location`` is neither a device nor its name, nor None for the CPU.
        """
        if not isinstance(map_location, (str, torch.device, type(None))):
            msg = (
                f"{self.folder.name} is sharded, and its tensors have no locations to map. Give a device, or its name."
            )
            raise TypeError(msg)
        state = self.nested
        if keys is not None:
            state = names.select(state, Choice(state, keys, self.folder.name))
        entries = entries_of(state)
        filled = {entry.name: self.empty(entry, map_location) for entry in entries if entry.tensor}
        parts = [part for entry in entries if entry.tensor for part in self._parts(entry, filled[entry.name])]
        if map_location is None or torch.device(map_location).type != "meta":
            read_tensors(self.folder, parts, advance=advance)
        return replaced(state, {**filled, **self.values(entries, weights_only=weights_only)})

    def describe(self) -> CheckpointInfo:
        """Describe the checkpoint without reading tensor data; its size is that of its items."""
        named = [(name, entry) for name, entry in names.walk(self.nested) if isinstance(entry, ManifestEntry)]
        tensors = {name: entry.info for name, entry in named if entry.tensor}
        found = self.values([entry for _, entry in named], partial=True)
        others = {name: found[entry.name] for name, entry in named if not entry.tensor}
        writer = "torch.distributed.checkpoint"
        return CheckpointInfo(self.folder.name, "distributed", writer, self.stored, tensors, others, {})

    def values(
        self, entries: list[ManifestEntry], *, weights_only: bool = True, partial: bool = False
    ) -> dict[str, Any]:
        """Read the values among the entries, by name; see ``load_bytes``."""
        others = [entry for entry in entries if entry.tensor is None]
        blobs = read_bytes(self.folder, [self.item(MetadataIndex(entry.name)) for entry in others])
        return {
            entry.name: load_bytes(
                data, name=f"{entry.name!r} in {self.folder.name}", weights_only=weights_only, partial=partial
            )
            for entry, data in zip(others, blobs, strict=True)
        }

    def empty(self, entry: ManifestEntry, device: torch.device | str | None = None) -> torch.Tensor:
        """Return a tensor to fill; raise an InvalidCheckpointError if its items are too short."""
        info = entry.info
        chunks = [*self.chunks(entry)]
        covered = sum(chunk.sizes.numel() for chunk, _ in chunks)
        stored = sum(item.length for _, item in chunks)
        if covered != info.numel or stored < covered * info.dtype.itemsize:
            raise damaged(self.folder.name, f"{entry.name!r} has {covered} of {info.numel} elements")
        try:
            return torch.empty(info.shape, dtype=info.dtype, device=device or "cpu")
        except RuntimeError:
            check_shards(self.folder, [item for _, item in chunks])
            raise

    def chunks(self, entry: ManifestEntry) -> Iterator[tuple[ChunkStorageMetadata, ItemLocation]]:
        """Yield the chunks of a tensor, each with its location."""
        for chunk in entry.tensor.chunks if entry.tensor else ():
            yield chunk, self.item(MetadataIndex(entry.name, chunk.offsets))

    def item(self, index: MetadataIndex) -> ItemLocation:
        """Return the location of an item; raise an InvalidCheckpointError if the manifest has none."""
        place: ItemLocation | None = self.metadata.storage_data.get(index)
        if place is None:
            raise InvalidCheckpointError(f"The manifest of {self.folder.name} has no place for {index.fqn!r}.", AGAIN)
        if getattr(place, "transform_descriptors", None):
            reason = f"{index.fqn!r} in {self.folder.name} was written through an extension of torch's own writer."
            raise InvalidCheckpointError(reason, "Read it with torch's own reader.")
        return place

    def _parts(self, entry: ManifestEntry, target: torch.Tensor) -> Iterator[TensorRead]:
        """Yield the reads that fill a tensor."""
        for chunk, item in self.chunks(entry):
            part = Box(tuple(target.shape), tuple(chunk.offsets), tuple(chunk.sizes)).of(target)
            yield TensorRead(entry.name, item, (0,) * part.dim(), part)


def entries_of(state: Any) -> list[ManifestEntry]:
    """Return the entries in a nested state dict."""
    return [entry for _, entry in names.walk(state) if isinstance(entry, ManifestEntry)]


def replaced(value: Any, found: dict[str, Any]) -> Any:
    """Return the same nesting with the value of each entry."""
    if isinstance(value, ManifestEntry):
        return found[value.name]
    if isinstance(value, list):
        return [replaced(each, found) for each in value]
    return {key: replaced(each, found) for key, each in value.items()}


def _closed(value: Any) -> Any:
    """Convert nested dicts with integers as keys to lists without gaps."""
    if not isinstance(value, dict):
        return value
    if all(isinstance(key, int) for key in value):
        return [_closed(value[key]) for key in sorted(value)]
    return _unmarked({key: _closed(each) for key, each in value.items()})


def _unmarked(mapping: dict[Any, Any]) -> dict[Any, Any]:
    return {key[0] if isinstance(key, tuple) else key: each for key, each in mapping.items()}
