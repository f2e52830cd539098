"""Sparse tensors of a file, whose indices torch believes: one that leads outside has it read and write there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_BY_ROW = {torch.sparse_csr, torch.sparse_bsr}
_BY_COLUMN = {torch.sparse_csc, torch.sparse_bsc}


def is_sound(tensor: torch.Tensor) -> bool:
    """Whether the indices of a tensor, if it is sparse, are such as torch itself makes."""
    if tensor.layout == torch.strided or tensor.device.type == "meta":
        return True
    tensor = torch.Tensor.detach(tensor)  # without attributes, which may hide methods
    try:
        if tensor.layout == torch.sparse_coo:
            parts: Any = tensor._indices(), tensor._values(), tensor.size(), tensor.is_coalesced()
            _validate(torch._validate_sparse_coo_tensor_args, *parts)
        elif tensor.layout in _BY_ROW:
            parts = tensor.crow_indices(), tensor.col_indices(), tensor.values(), tensor.size(), tensor.layout
            _validate(torch._validate_sparse_compressed_tensor_args, *parts)
        elif tensor.layout in _BY_COLUMN:
            parts = tensor.ccol_indices(), tensor.row_indices(), tensor.values(), tensor.size(), tensor.layout
            _validate(torch._validate_sparse_compressed_tensor_args, *parts)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


def _validate(validate: Callable[..., object], *parts: Any) -> None:
    try:
        validate(*parts, check_pinning=False)  # which would look for a GPU
    except TypeError:  # an older torch has no such argument
        validate(*parts)
