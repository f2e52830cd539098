"""Places the storages of a file on devices while its structure is loaded, and records how to fill them later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import serialization

from fsspec_csx.formats.base import ReadOptions
from fsspec_csx.formats.damage import wrong_checksum
from fsspec_csx.tensors import fill
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.memory import reserved
from fsspec_csx.tensors.source import Source


class StoragePlacer:
    """Places storages as ``map_location`` says, by the rules of torch.load.

    Attributes:
        records: of the storages to fill; storages for a callable are filled at once.
        has_unplaced: see ``LazyObject``.
        failure: the error of the file or of the callable.
    """

    def __init__(self, source: Source, name: str, options: ReadOptions) -> None:
        self.records: list[Record] = []
        self.has_unplaced = False
        self.failure: BaseException | None = None
        self._source = source
        self._name = name
        self._map = options.map_location
        self._wanted = options.wanted
        self._devices: dict[str, torch.device] = {}

    def place(self, record: Record, location: str) -> Any:
        """Return what replaces the storage of a record, which is reserved on the CPU but not filled."""
        size = record.storage.nbytes()
        stays = self.stays(location)
        if stays or (size and self._wanted is not None and record.offset not in self._wanted):
            self.has_unplaced |= not stays
            self.records += [record] if size else []
            return record.storage
        device = self._device(location)
        if device is None:
            try:
                return self._placed_now(record, location)
            except BaseException as error:
                self.failure = error
                raise
        placed = reserved(size, device)
        self.records += [replace(record, storage=placed)] if size and device.type != "meta" else []
        return placed

    def stays(self, location: str) -> bool:
        """Return whether a storage of this location stays on the CPU, and no callable needs to see it."""
        return self._target(location) == "cpu"

    def _target(self, location: str) -> str | None:
        """Return the location that replaces this one; None if the map is a callable."""
        if self._map is None:
            return location
        if isinstance(self._map, dict):
            return str(self._map.get(location, location))
        return str(self._map) if isinstance(self._map, (str, torch.device)) else None

    def _device(self, location: str) -> torch.device | None:
        """Return the device for a storage of this location; None if its bytes are needed first."""
        target = self._target(location)
        if target is None:
            return None
        if target not in self._devices:
            self._devices[target] = _restored(reserved(0, torch.device("cpu")), target).device
        device = self._devices[target]
        return None if device.type == "cpu" else device  # a custom backend, registered with torch

    def _placed_now(self, record: Record, location: str) -> Any:
        if fill.fill(self._source, [record]):
            raise wrong_checksum(self._name, repr(record.name))
        target = self._target(location)
        if target is not None:
            return _restored(record.storage, target)
        result = self._map(record.storage, location)
        return _restored(record.storage, location) if result is None else result


def _restored(storage: torch.UntypedStorage, location: str) -> Any:
    return serialization.default_restore_location(storage, location)  # type: ignore[no-untyped-call]


def placed(source: Source, found: LazyObject, name: str, options: ReadOptions) -> LazyObject:
    """Move the tensors of a lazy object of named CPU tensors to where ``map_location`` says."""
    placer = StoragePlacer(source, name, options)
    if placer.stays("cpu"):
        return found
    records = {record.name: record for record in found.records}
    obj: dict[str, torch.Tensor] = {}
    first: dict[int, str] = {}
    for key, tensor in found.obj.items():
        if (owner := first.setdefault(id(tensor), key)) != key:  # another name of the same tensor
            obj[key] = obj[owner]
            continue
        record = records.get(key) or Record(key, 0, tensor.untyped_storage())  # an empty tensor has no record
        storage = placer.place(record, "cpu")
        obj[key] = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        obj[key].set_(storage, 0, tensor.shape, tensor.stride())
    return LazyObject(obj, placer.records, placer.has_unplaced)
