"""The description of a checkpoint, without its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorInfo:
    """The description of a tensor.

    Attributes:
        dtype: the type of its elements.
        shape: its size in each dimension; -1 where the parts of a nested tensor differ.
        nbytes: the size of its elements in bytes; for a sparse tensor, as if it were dense.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return self.nbytes // self.dtype.itemsize


@dataclass(frozen=True)
class CheckpointInfo:
    """The description of a checkpoint.

    Attributes:
        path: where it is, without any password.
        format: ``torch``, ``safetensors``, ``huggingface``, ``cerebras`` or ``distributed``.
        written_by: the program that wrote the file, and the variant of its format.
        size: of the file in bytes.
        tensors: by dotted name, in the order of the file.
        values: all other entries, by dotted name.
        metadata: the small records of a torch file, such as ``version`` and ``byteorder``, the ``__metadata__`` of a
            safetensors file, or the ``metadata`` of an index.
    """

    path: str
    format: str
    written_by: str
    size: int
    tensors: Mapping[str, TensorInfo]
    values: Mapping[str, Any]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """A difference between two checkpoints.

    Attributes:
        name: of the entry, dotted; empty for the whole.
        what: ``only in the first``, ``only in the second``, ``type``, ``layout``, ``shape``, ``dtype`` or ``value``.
        first: a short text for the entry in the first checkpoint; None if it is missing, and for tensor values.
        second: the same for the second.
        elements: how many elements of two tensors differ; else None.
        total: how many elements they have; else None.
        absolute: the largest absolute difference of two elements, NaN if one of them is NaN; else None.
        relative: the largest difference relative to the second's element, infinite if that is 0; else None.
    """

    name: str
    what: str
    first: str | None = None
    second: str | None = None
    elements: int | None = None
    total: int | None = None
    absolute: float | None = None
    relative: float | None = None
