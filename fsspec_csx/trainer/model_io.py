"""Conversions of a model's input and output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fsspec_csx.tensors.torch_compat import tree_map


def to_device(device: torch.device, batch: Any) -> Any:
    return tree_map(
        lambda value: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value, batch
    )


def as_outputs(outputs: Any) -> dict[str, Any]:
    """Return a model's output as a dict with the key ``loss``; raise a TypeError if it has no loss."""
    if isinstance(outputs, torch.Tensor):
        return {"loss": outputs}
    if isinstance(outputs, Mapping):
        found = dict(outputs)
    elif isinstance(outputs, (tuple, list)) and outputs:
        found = {"loss": outputs[0], **{f"output_{number}": each for number, each in enumerate(outputs[1:], 1)}}
    else:
        found = {}
    if not isinstance(found.get("loss"), torch.Tensor):
        msg = f"The model returned {type(outputs).__name__} without a loss. Let it return the loss, or a dict with it."
        raise TypeError(msg)
    return found


def as_list(value: Any) -> list[Any]:
    """Return a list of one value, or of the values of a list or tuple; an empty list for None."""
    if value is None:
        return []
    return [*value] if isinstance(value, (list, tuple)) else [value]
