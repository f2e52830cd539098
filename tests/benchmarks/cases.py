"""Case: a checkpoint that is the same in every process that makes it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

State = dict[str, Any]
# How it lies in S3: as torch.save writes it, as safetensors does, as the bytes of the tensors alone, in parts, as
# torch.distributed.checkpoint does, or as a file for each tensor.
KINDS = {"torch": ".pt", "safetensors": ".safetensors", "raw": ".raw", "sharded": ".dcp", "files": ".files"}

_OF_A_PARAMETER = 4  # itself, and three of the optimizer
_DTYPES = (torch.float32, torch.bfloat16, torch.float32, torch.int64)
_FACTOR = -1640531535  # odd, so that no two numbers become equal


@dataclass(frozen=True)
class Case:
    """What is saved and loaded.

    Attributes:
        name: what to call it; part of the names of its objects.
        tensors: how many.
        size: bytes of each tensor, a multiple of 4; of the largest if they are mixed.
        mixed: whether it is a small model with its optimizer and plain values, in tensors of 1 byte and more.
    """

    name: str
    tensors: int
    size: int
    mixed: bool = False

    @property
    def nbytes(self) -> int:
        """Of all tensors together."""
        return sum(dtype.itemsize * math.prod(shape) for _, dtype, shape in self.layout())

    def key(self, kind: str) -> str:
        """The object, or for "raw", "sharded" and "files" the folder, that holds it."""
        return f"{self.name}{KINDS[kind]}"

    def part(self) -> Case:
        """An eighth of the tensors, for who would take too long for all."""
        return replace(self, name=f"{self.name}-part", tensors=max(self.tensors // 8, 1))

    def layout(self) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of each tensor, in order."""
        if not self.mixed:
            for number in range(self.tensors):
                yield f"layers.{number}.weight", torch.float32, (self.size // 4,)
            return
        draw = random.Random(self.tensors)
        last = self.tensors // _OF_A_PARAMETER - 1
        for number in range(last + 1):
            size = {0: 1, last: self.size}.get(number) or round(math.exp(draw.uniform(0, math.log(self.size))))
            dtype = _DTYPES[number % len(_DTYPES)] if size >= 8 else torch.uint8
            shape = (size // dtype.itemsize,)
            yield f"layers.{number}.weight", dtype, shape
            yield f"optimizer.{number}.step", torch.float32, ()
            yield f"optimizer.{number}.exp_avg", dtype, shape
            yield f"optimizer.{number}.exp_avg_sq", dtype, shape

    def flat(self) -> dict[str, torch.Tensor]:
        """The tensors by name; no two numbers in them are equal."""
        made, start = {}, 0
        for name, dtype, shape in self.layout():
            made[name] = _filled(dtype, shape, start)
            start += made[name].nbytes // 4 + 1
        return made

    def state(self) -> State:
        """What a trainer saves: the tensors, and if they are mixed, nested as in a real checkpoint."""
        flat = self.flat()
        if not self.mixed:
            return flat
        numbers = range(self.tensors // _OF_A_PARAMETER)
        of_one = ("step", "exp_avg", "exp_avg_sq")
        return {
            "model": {name: tensor for name, tensor in flat.items() if name.startswith("layers.")},
            "optimizer": {
                "state": {number: {name: flat[f"optimizer.{number}.{name}"] for name in of_one} for number in numbers},
                "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": list(numbers)}],
            },
            "epoch": 3,
            "name": self.name,
        }

    def dotted(self) -> State:
        """The tensors of the state by their dotted names."""
        if not self.mixed:
            return self.flat()
        prefixes = {"layers": "model.layers", "optimizer": "optimizer.state"}
        parts = ((name.partition("."), tensor) for name, tensor in self.flat().items())
        return {f"{prefixes[first]}.{rest}": tensor for (first, _, rest), tensor in parts}

    def __str__(self) -> str:
        each = _size(self.size)
        return f"{self.tensors} x {'1 B to ' if self.mixed else ''}{each}"


WARM_UP = Case("warm-up", tensors=1, size=4096)


def loaded(file: Any) -> State:
    """What ``torch.load`` reads from a file."""
    state: State = torch.load(file, weights_only=True)
    return state


def difference(first: Any, second: Any, name: str = "the checkpoint") -> str | None:
    """What is not the same in every bit, or None."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return f"{name} is {second.dtype} {tuple(second.shape)} instead of {first.dtype} {tuple(first.shape)}"
        return None if torch.equal(as_bytes(first), as_bytes(second)) else f"the values of {name} differ"
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return f"the names in {name} differ"
        found = (difference(value, second[key], str(key)) for key, value in first.items())
        return next((text for text in found if text), None)
    return None if first == second else f"{name} is {second!r} instead of {first!r}"


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as a row of uint8."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _filled(dtype: torch.dtype, shape: tuple[int, ...], start: int) -> torch.Tensor:
    nbytes = dtype.itemsize * math.prod(shape)
    numbers = torch.arange(start, start + -(-nbytes // 4), dtype=torch.int32).mul_(_FACTOR).view(torch.uint8)
    # A slice would keep, and save, the memory of the whole.
    exact = numbers if len(numbers) == nbytes else numbers[:nbytes].clone()
    return exact.view(dtype).reshape(shape)


def _size(nbytes: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if nbytes >= 2**power:
            return f"{nbytes / 2**power:g} {unit}"
    return f"{nbytes} B"
