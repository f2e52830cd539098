"""The memory of tensors: to reserve it, and to refuse tensors without it.

To read one whose storage is too small for it, as FSDP leaves its shards, is to read foreign memory.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fsspec_csx.errors import FreedTensorError
from fsspec_csx.tensors.names import shown

_REMEDY = "Gather the full tensors first, as FSDP's state_dict() does, or leave them out."
_OVERLAP_MOST = 10**7  # elements of memory for which an exact answer is worth its time


def is_freed(tensor: torch.Tensor) -> bool:
    """Whether the storage of a tensor is too small for it.

    It is not so where a tensor has no storage of its own: on the meta device, sparse, nested, or standing for others.
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
    return bool((last + 1) * tensor.dtype.itemsize > nbytes)


def address(tensor: torch.Tensor) -> int:
    """Where a tensor's elements begin; 0 if it has no memory of its own, and only stands for others."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def check(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse, by a FreedTensorError, to save tensors whose storage is too small for them; it names them."""
    if freed := [name for name, tensor in tensors if is_freed(tensor)]:
        raise refused(freed)


def check_targets(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse, by a FreedTensorError, tensors to fill that have no memory, or whose elements share some."""
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
    """The error for tensors of these names, which are to be saved; none for one whose name is not known."""
    if not names:
        return FreedTensorError("A tensor has no memory: its storage is too small, as after resize_(0).", _REMEDY)
    which = f"The tensors {shown(names)} have" if len(names) > 1 else f"The tensor {shown(names)} has"
    return FreedTensorError(f"{which} no memory: the storage is too small, as after resize_(0).", _REMEDY)


def overlaps_itself(tensor: torch.Tensor) -> bool:
    """Whether elements of a strided tensor share memory, as in an expanded one, so that it cannot take values."""
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
    """A storage of a size in bytes, not filled."""
    return torch.UntypedStorage(size, device=device)  # type: ignore[no-untyped-call]
