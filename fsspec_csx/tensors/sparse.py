"""Sparse tensors of a file, whose indices torch believes: one that leads outside has it read and write there."""

from __future__ import annotations

from typing import Any

import torch

from fsspec_csx.tensors import torch_compat

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
            torch_compat.validate_sparse_coo(*parts)
        elif tensor.layout in _BY_ROW:
            parts = tensor.crow_indices(), tensor.col_indices(), tensor.values(), tensor.size(), tensor.layout
            torch_compat.validate_sparse_compressed(*parts)
        elif tensor.layout in _BY_COLUMN:
            parts = tensor.ccol_indices(), tensor.row_indices(), tensor.values(), tensor.size(), tensor.layout
            torch_compat.validate_sparse_compressed(*parts)
    except (IndexError, RuntimeError, ValueError):
        return False
    return True
