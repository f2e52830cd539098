"""What is told of a checkpoint without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor.

    Attributes:
        dtype: the type of its elements.
        shape: its size in each dimension.
        nbytes: how many bytes its elements take; those of a sparse one, if it were dense.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class CheckpointInfo:
    """What is known of a checkpoint.

    Attributes:
        path: where it is, without any password.
        format: ``torch`` or ``safetensors``.
        size: that of the file in bytes.
        tensors: by their dotted names, in the order of the file.
        values: what is no tensor, by dotted names too.
    """

    path: str
    format: str
    size: int
    tensors: Mapping[str, TensorInfo]
    values: Mapping[str, Any]
