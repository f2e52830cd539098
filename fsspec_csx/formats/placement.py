"""Moves the tensors of a lazy object to the devices that ``map_location`` names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from fsspec_csx.formats.torch_zip.reader import complete
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.map_location import LocationMapper, reserved
from fsspec_csx.tensors.source import Source


def placed(
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
                complete(source, LazyObject({key: tensor}, [record] if record else []), name=name)
                storage = places.placed(storage, "cpu")
            else:
                storage = reserved(storage.nbytes(), device)
                moved += [replace(record, storage=storage)] if record and device.type != "meta" else []
        obj[key] = torch.empty(0, dtype=tensor.dtype, device=storage.device)
        obj[key].set_(storage, 0, tensor.shape, tensor.stride())
    return LazyObject(obj, moved)
