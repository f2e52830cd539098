"""What is known of a checkpoint without loading it."""

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
        shape: its size in each dimension; -1 where that is not the same for all parts of a nested one.
        nbytes: how many bytes its elements take; those of a sparse one, if it were dense.
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
    """What is known of a checkpoint.

    Attributes:
        path: where it is, without any password.
        format: ``torch``, ``safetensors``, ``huggingface``, ``cerebras`` or ``distributed``.
        written_by: what the file says of its writer and of the variant of its format.
        size: that of the file in bytes.
        tensors: by their dotted names, in the order of the file.
        values: what is no tensor, by dotted names too.
        metadata: what the file says of itself: the small records of a torch file, such as ``version`` and
            ``byteorder``, the ``__metadata__`` of a safetensors file, or the ``metadata`` of an index.
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
    """One way in which two checkpoints differ.

    Attributes:
        name: of the entry, dotted; empty for the whole.
        what: ``only in the first``, ``only in the second``, ``type``, ``layout``, ``shape``, ``dtype`` or ``value``.
        first: a short text of what the first checkpoint has; None if it has nothing of the name, and for the values of
            tensors.
        second: the same of the second.
        elements: of two tensors, how many elements differ; else None.
        total: how many they have; else None.
        absolute: the largest difference of two of these elements, NaN if one of them is NaN; else None.
        relative: the largest relative to the second's element, infinite where that is 0; else None.
    """

    name: str
    what: str
    first: str | None = None
    second: str | None = None
    elements: int | None = None
    total: int | None = None
    absolute: float | None = None
    relative: float | None = None
