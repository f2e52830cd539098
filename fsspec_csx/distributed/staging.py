"""Copies state dicts to the CPU, so that the training can continue while they are saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.stateful import Stateful

from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.snapshot import copies_of


def stage(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a state dict, with objects replaced by their ``state_dict()``; the copy is complete when this returns.

    Of DTensors, only this process's part is copied. Tensors that share memory share it in the copy.
    """
    given = {key: each.state_dict() if isinstance(each, Stateful) else each for key, each in state_dict.items()}
    tensors = {id(each): each for each in _tensors(given)}
    parts = {id(part): part for each in tensors.values() for part in _parts(each)}
    copies = copies_of(parts)
    staged = {key: _staged(each, copies) for key, each in tensors.items()}
    found: dict[str, Any] = copy.deepcopy(given, staged)  # deepcopy takes the copies from this memo
    return found


def nbytes(state_dict: Mapping[str, Any]) -> int:
    """Return the size in bytes of this process's tensors in a state dict."""
    parts = {id(part): part for each in _tensors(state_dict) for part in _parts(each)}
    return sum(part.nbytes for part in parts.values() if part.layout == torch.strided and not part.is_nested)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return this process's parts of a tensor, such as a DTensor; for a plain tensor, the tensor itself."""
    if isinstance(tensor, torch_compat.sharded_tensor()):
        return []
    if not _is_wrapper(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [part for name in names if isinstance(part := getattr(tensor, name), torch.Tensor)]


def _is_wrapper(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "__tensor_flatten__") and not tensor.is_nested


def _staged(tensor: torch.Tensor, copies: Mapping[int, torch.Tensor]) -> Any:
    if isinstance(tensor, torch_compat.sharded_tensor()):
        return DefaultStager(StagingOptions(*(False,) * 4)).stage({"": tensor})[""]  # type: ignore[index]
    if not _is_wrapper(tensor):
        return copies[id(tensor)]
    wrapper: Any = tensor
    names, context = wrapper.__tensor_flatten__()
    parts = {name: getattr(tensor, name) for name in names}
    parts = {name: copies.get(id(part), part) for name, part in parts.items()}
    return type(wrapper).__tensor_unflatten__(parts, context, tensor.shape, tensor.stride())
