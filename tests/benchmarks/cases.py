"""Case: a state dict of tensors of equal size, the same in every process that makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

State = dict[str, torch.Tensor]

_FLOAT = 4


@dataclass(frozen=True)
class Case:
    """What is saved and loaded.

    Attributes:
        name: what to call it; part of the names of its objects.
        tensors: how many.
        length: of each tensor, in float32 numbers.
    """

    name: str
    tensors: int
    length: int

    @property
    def nbytes(self) -> int:
        """Of all tensors together."""
        return self.tensors * self.length * _FLOAT

    @property
    def key(self) -> str:
        """The object that holds the state as ``torch.save`` writes it."""
        return f"{self.name}.pt"

    @property
    def raw_key(self) -> str:
        """The object that holds the bytes of the tensors and nothing else."""
        return f"{self.name}.raw"

    def names(self) -> list[str]:
        """Of the tensors, in order."""
        return [f"layers.{number}.weight" for number in range(self.tensors)]

    def state(self) -> State:
        """The state dict, in which no two tensors are equal."""
        base = torch.rand(self.length, generator=torch.Generator().manual_seed(self.length))
        return {name: base + number for number, name in enumerate(self.names())}

    def __str__(self) -> str:
        each = self.length * _FLOAT
        size = f"{each / 2**20:g} MiB" if each >= 2**20 else f"{each / 2**10:g} KiB"
        return f"{self.name}: {self.tensors} x {size}"


WARM_UP = Case("warm-up", tensors=1, length=1024)


def loaded(file: Any) -> State:
    """What ``torch.load`` reads from a file."""
    state: State = torch.load(file, weights_only=True)
    return state


def difference(first: State, second: State) -> str | None:
    """What is not the same in every bit, or None."""
    if list(first) != list(second):
        return "the names of the tensors differ"
    for name, tensor in first.items():
        other = second[name]
        if (tensor.dtype, tensor.shape) != (other.dtype, other.shape):
            return f"{name} is {other.dtype} {tuple(other.shape)} instead of {tensor.dtype} {tuple(tensor.shape)}"
        if not torch.equal(tensor.view(torch.int32), other.view(torch.int32)):
            return f"the values of {name} differ"
    return None
