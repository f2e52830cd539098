"""Replacements for torch's functions that make tensors and parameters from a pickle's arguments."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from fsspec_csx.tensors import torch_compat

_DIMENSIONS = 64
_EXPANDED = 2**24  # elements


def refused(what: str) -> pickle.UnpicklingError:
    """Return the error for a pickle that torch.save does not write."""
    return pickle.UnpicklingError(f"the pickle has {what}")


def tensor(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> torch.Tensor:
    """As ``torch._utils._rebuild_tensor_v2`` and ``_v3``, which would enlarge a storage that is too small."""
    if type(hooks) is not OrderedDict or type(requires_grad) is not bool:
        raise refused("a tensor of an unknown kind")
    _check_extent(storage.nbytes(), dtype.itemsize, offset, size, stride)
    made = torch.empty((0,), dtype=dtype, device=storage.device)
    made.set_(storage, offset, size, stride)
    if requires_grad:
        made.requires_grad = True
    if metadata:
        torch_compat.set_tensor_metadata(made, metadata)
    made._backward_hooks = hooks
    return made


def _check_extent(nbytes: int, width: int, offset: Any, size: Any, stride: Any) -> None:
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride) or len(size) > _DIMENSIONS:
        raise refused("a tensor of no shape")
    if type(offset) is not int or offset < 0:  # a tensor has __index__, and could be of any size
        raise refused("a tensor at no place")
    end = offset + 1
    for count, step in zip(size, stride, strict=True):
        if type(count) is not int or type(step) is not int or count < 0 or step < 0:
            raise refused("a tensor of no shape")
        end += (count - 1) * step
    if end * width > nbytes and 0 not in size:
        raise refused("a tensor larger than its storage")


def parameter(data: Any, requires_grad: Any, hooks: Any) -> torch.nn.Parameter:
    """Make a parameter; as ``torch._utils._rebuild_parameter``."""
    if type(data) is not torch.Tensor or type(requires_grad) is not bool or type(hooks) is not OrderedDict:
        raise refused("a parameter of no tensor")
    made = torch.nn.Parameter(data, requires_grad)
    made._backward_hooks = hooks
    return made


def _without_data(dtype: torch.dtype, size: Any, stride: Any, requires_grad: Any) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="meta", requires_grad=requires_grad)


def functions(
    held: Callable[[Any], tuple[torch.UntypedStorage, torch.dtype]], *, indexes: bool
) -> dict[tuple[str, str], Any]:
    """Return replacements for torch's functions that make tensors and parameters, by module and name.

    ``held`` returns the storage of a pickled object, and the dtype of its elements. ``indexes`` says whether an opcode
    can use one tensor as an index of another.
    """

    def bounded(made: torch.Tensor) -> torch.Tensor:
        if indexes and made.numel() > max(made.untyped_storage().nbytes(), _EXPANDED):
            raise refused("a tensor expanded so far that to take it for an index would need much memory")
        return made

    def of_typed(stored: Any, *args: Any) -> torch.Tensor:
        return bounded(tensor(*held(stored), *args))

    def of_dtype(
        stored: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
    ) -> torch.Tensor:
        if not isinstance(dtype, torch.dtype):
            raise refused("a tensor of no dtype")
        return bounded(tensor(held(stored)[0], dtype, offset, size, stride, grad, hooks, metadata))

    return {
        ("torch", "device"): lambda *args: torch.device(*args),
        ("torch._utils", "_rebuild_tensor_v2"): of_typed,
        ("torch._utils", "_rebuild_tensor_v3"): of_dtype,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): _without_data,
    }
