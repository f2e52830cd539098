"""Moves the tensors of a lazy object to the devices that ``map_location`` names."""

from __future__ import annotations

import torch

from fsspec_csx.formats.read_options import ReadOptions
from fsspec_csx.formats.torch_zip.placing import StoragePlacer
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.map_location import LocationMapper
from fsspec_csx.tensors.source import Source


def placed(source: Source, found: LazyObject, name: str, options: ReadOptions) -> LazyObject:
    """A lazy object of tensors by name on the CPU, these moved to where ``map_location`` has them."""
    if LocationMapper(options.map_location).stays("cpu"):
        return found
    placer = StoragePlacer(source, name, options)
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
