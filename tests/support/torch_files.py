"""The contents of torch files, and complete comparisons of values."""

from __future__ import annotations

import io
from typing import Any

import torch

from fsspec_csx.formats import reader
from fsspec_csx.tensors.source import Source, memory_of


def source_of(data: bytes) -> Source:
    """A file of these bytes."""
    return Source(io.BytesIO(data), len(data))


def loaded(data: bytes, **options: Any) -> Any:
    """What load makes of a file with these bytes."""
    return reader.read(Source(io.BytesIO(data), len(data)), name="file", **options)


def equal(first: Any, second: Any) -> bool:
    """Equal in types, nesting, and every tensor's dtype, shape, strides, flags and bytes."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return form(first) == form(second) and bits(first) == bits(second)
    if isinstance(first, dict):
        same_attributes = getattr(first, "__dict__", 0) == getattr(second, "__dict__", 0)
        return same_attributes and equal([*first.items()], [*second.items()])  # tensors may be keys
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    if isinstance(first, (torch.storage.TypedStorage, torch.UntypedStorage)):
        return list(map(float, first)) == list(map(float, second))
    if isinstance(first, torch.serialization.StorageType):
        return first.dtype == second.dtype  # type: ignore[no-any-return]
    return bool(first == second)


def form(tensor: torch.Tensor) -> Any:
    """All of a tensor but its values."""
    shape = None if tensor.is_nested else tensor.shape
    return tensor.dtype, shape, tensor.layout, tensor.device, tensor.requires_grad, vars(tensor)


def bits(tensor: torch.Tensor) -> Any:
    """What distinguishes two tensors of the same form."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
        return repr(tensor)
    if tensor.device.type == "meta":
        return tensor.stride()
    storage = tensor.detach().resolve_conj().resolve_neg().contiguous().untyped_storage()
    return tensor.stride(), bytes(memory_of(storage)) if storage.nbytes() else b""
