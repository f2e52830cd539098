"""Reserves the memory of tensors, and refuses tensors without memory.

A tensor whose storage is too small, as FSDP leaves its shards, must not be read: that would read foreign memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fsspec_csx.errors import FreedTensorError
from fsspec_csx.tensors.names import shown

_REMEDY = "Gather the full tensors first, as FSDP's state_dict() does, or leave them out."
_PER_BYTE = {torch.quint4x2: 2, torch.quint2x4: 4}  # elements of dtypes with several in a byte
_OVERLAP_MOST = 10**7  # elements; an exact check of larger tensors takes too long


def is_freed(tensor: torch.Tensor) -> bool:
    """Return whether the storage of a tensor is too small for it.

    False for a tensor without its own storage: a meta, sparse or nested tensor, or a wrapper of others.
    """
    if tensor.layout != torch.strided or tensor.device.type == "meta" or tensor.is_nested:
        return False
    own = torch.Tensor  # an attribute of the tensor may hide a method
    try:
        nbytes = own.untyped_storage(tensor).nbytes()
        last = own.storage_offset(tensor)
        for size, stride in zip(tensor.shape, own.stride(tensor), strict=True):
            if not size:
                return False
            last += (size - 1) * stride
    except (NotImplementedError, RuntimeError, TypeError, ValueError):  # ValueError: a parameter without a shape yet
        return False
    return bool((last + 1) * tensor.dtype.itemsize > nbytes * _PER_BYTE.get(tensor.dtype, 1))


def address(tensor: torch.Tensor) -> int:
    """Return the address of a tensor's elements; 0 if it has no memory of its own."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def check(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise a FreedTensorError that names tensors to save whose storage is too small."""
    if freed := [name for name, tensor in tensors if is_freed(tensor)]:
        raise refused(freed)


def check_targets(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise a FreedTensorError for tensors to fill that have no memory, or whose elements overlap."""
    empty, overlapping = [], []
    for name, tensor in tensors:
        if tensor.device.type == "meta" or is_freed(tensor):
            empty.append(name)
        elif overlaps_itself(tensor):
            overlapping.append(name)
    if empty:
        reason = f"There is no memory to fill in {shown(empty)}: on the meta device, or with a storage too small."
        raise FreedTensorError(reason, "Give it memory first, as by module.to_empty(device='cpu').")
    if overlapping:
        reason = f"Elements of {shown(overlapping)} share their memory, as after expand(), and cannot all be filled."
        raise FreedTensorError(reason, "Pass a clone() of it.")


def refused(names: list[str]) -> FreedTensorError:
    """Return the error for tensors to save; ``names`` is empty if the name is unknown."""
    if not names:
        return FreedTensorError("A tensor has no memory: its storage is too small, as after resize_(0).", _REMEDY)
    which = f"The tensors {shown(names)} have" if len(names) > 1 else f"The tensor {shown(names)} has"
    return FreedTensorError(f"{which} no memory: the storage is too small, as after resize_(0).", _REMEDY)


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Return whether elements of a strided tensor share memory, as after expand(), so that it cannot be filled."""
    if tensor.layout != torch.strided or tensor.is_nested or not tensor.numel():
        return False
    dims = sorted((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)
    extent = 1
    clear = True
    for stride, size in dims:
        if not stride:
            return True
        clear &= stride >= extent
        extent += (size - 1) * stride
    if clear or extent > _OVERLAP_MOST:
        return False
    places = torch.arange(extent).as_strided(tensor.shape, tensor.stride())
    return bool(torch.unique(places).numel() < tensor.numel())


def reserved(size: int, device: torch.device) -> torch.UntypedStorage:
    """Return an unfilled storage of a size in bytes."""
    return torch.UntypedStorage(size, device=device)  # type: ignore[no-untyped-call]
