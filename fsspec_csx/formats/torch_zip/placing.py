"""Where the tensors of a file go that is loaded structure first, and the records that fill them later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import serialization

from fsspec_csx.formats.base import ReadOptions
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip.archive import Archive
from fsspec_csx.formats.torch_zip.rebuilding import refused
from fsspec_csx.tensors import fill
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.memory import reserved
from fsspec_csx.tensors.source import Source


class StoragePlacer:
    """Puts storages where ``map_location`` has them, by the rules of torch.load.

    Attributes:
        records: of the storages that are to be filled; those for a callable are filled at once.
        left: see ``LazyObject``.
        failure: what went wrong when the file was read, or in the callable.
    """

    def __init__(self, source: Source, name: str, options: ReadOptions) -> None:
        self.records: list[Record] = []
        self.left = False
        self.failure: BaseException | None = None
        self._source = source
        self._name = name
        self._map = options.map_location
        self._wanted = options.wanted
        self._devices: dict[str, torch.device] = {}

    def place(self, record: Record, location: str) -> Any:
        """What takes the place of the storage of a record, which is on the CPU, reserved and not filled."""
        size = record.storage.nbytes()
        stays = self.stays(location)
        if stays or (size and self._wanted is not None and record.offset not in self._wanted):
            self.left |= not stays
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
        """Whether a storage of this location is one of the CPU, and the caller's map need not see it."""
        return self._target(location) == "cpu"

    def _target(self, location: str) -> str | None:
        """Another location in place of this; None if the caller's map is a callable."""
        if self._map is None:
            return location
        if isinstance(self._map, dict):
            return str(self._map.get(location, location))
        return str(self._map) if isinstance(self._map, (str, torch.device)) else None

    def _device(self, location: str) -> torch.device | None:
        """The device that a storage of this location goes to; None if its bytes are to be seen first."""
        target = self._target(location)
        if target is None:
            return None
        if target not in self._devices:
            self._devices[target] = _restored(reserved(0, torch.device("cpu")), target).device
        device = self._devices[target]
        return None if device.type == "cpu" else device  # one of a kind that torch was taught

    def _placed_now(self, record: Record, location: str) -> Any:
        if fill.fill(self._source, [record]):
            raise torch_archive.damaged(self._name, repr(record.name))
        target = self._target(location)
        if target is not None:
            return _restored(record.storage, target)
        result = self._map(record.storage, location)
        return _restored(record.storage, location) if result is None else result


def _restored(storage: torch.UntypedStorage, location: str) -> Any:
    return serialization.default_restore_location(storage, location)  # type: ignore[no-untyped-call]


class ArchiveStorages:
    """The storages of an archive, made when they are asked for."""

    def __init__(self, archive: Archive, placer: StoragePlacer) -> None:
        self._placer = placer
        self._found = {entry.name.split(b"/", 2)[2]: (entry, offset) for entry, offset in archive.data}
        self._made: dict[str, torch.UntypedStorage] = {}

    def get(self, key: str, location: str, nbytes: int) -> torch.UntypedStorage:
        """The storage of a key, which must have so many bytes."""
        entry, offset = self._found[key.encode()]
        if entry.size != nbytes:
            raise refused("a storage that does not have the size of its record")
        if key not in self._made:
            record = entry.record(offset, reserved(nbytes, torch.device("cpu")))
            self._made[key] = self._placer.place(record, location)
        return self._made[key]


def placed(source: Source, found: LazyObject, name: str, options: ReadOptions) -> LazyObject:
    """A lazy object of tensors by name on the CPU, these moved to where ``map_location`` has them."""
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
        record = records.get(key) or Record(key, 0, tensor.untyped_storage())  # one without bytes has none
        storage = placer.place(record, "cpu")
        obj[key] = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        obj[key].set_(storage, 0, tensor.shape, tensor.stride())
    return LazyObject(obj, placer.records, placer.left)
