"""Short descriptions of the entries of a checkpoint."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any

import torch

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60


def entry(value: Any) -> str:
    """Describe a tensor or another value."""
    if isinstance(value, torch.Tensor):
        return f"tensor {dtype(value)} {shape(value)}"
    return short(value)


def short(value: Any) -> str:
    """Return the repr of a value, limited to one line."""
    made: Callable[[Any], str] = _SHOWN.repr
    try:
        return made(value)
    except Exception:  # such as an int with too many digits
        return f"<{type(value).__name__}>"


def layout(tensor: torch.Tensor) -> str:
    """Describe the layout of a tensor's elements, which must be equal for tensors to be compared."""
    if tensor.device.type == "meta":
        return "without data"
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return f"quantized, {_quantization(tensor)}"
    if tensor.layout == torch.sparse_coo:
        return f"sparse_coo, in {tensor.sparse_dim()} dimensions"
    return str(tensor.layout).removeprefix("torch.")


def _quantization(tensor: torch.Tensor) -> str:
    scheme = tensor.qscheme()
    if scheme == torch.per_tensor_affine:
        return f"scale {tensor.q_scale()}, zero point {tensor.q_zero_point()}"
    scales, points = tensor.q_per_channel_scales().tolist(), tensor.q_per_channel_zero_points().tolist()
    return f"axis {tensor.q_per_channel_axis()}, scales {scales}, zero points {points}"


def shape(tensor: torch.Tensor) -> str:
    """Return the shape of a tensor, or the shapes of a nested tensor's parts."""
    if tensor.is_nested:
        return str([tuple(each.shape) for each in tensor.unbind()])
    return str(tuple(tensor.shape))


def dtype(tensor: torch.Tensor) -> str:
    """Return the dtype of a tensor."""
    return str(tensor.dtype).removeprefix("torch.")
