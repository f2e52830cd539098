"""Boxes: parts of tensors, given by indices."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Box:
    """A part of a tensor.

    Attributes:
        start: the first index in each dimension.
        lengths: the number of indices in each dimension.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.lengths)

    @property
    def whole(self) -> bool:
        """Whether it is the whole tensor."""
        return self.lengths == self.shape

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this part of a tensor."""
        for dimension, (start, length) in enumerate(zip(self.start, self.lengths, strict=True)):
            tensor = tensor.narrow(dimension, start, length)
        return tensor

    def fits(self) -> bool:
        """Return whether it lies within the tensor's shape."""
        sizes = zip(self.start, self.lengths, self.shape, strict=True)
        return all(start >= 0 and length >= 0 and start + length <= size for start, length, size in sizes)


def boxes_of(shape: tuple[int, ...], first: int, end: int) -> Iterator[Box]:
    """Yield the boxes of the elements from ``first`` up to ``end``, in order; none is empty."""
    for start, lengths in _parts(shape, first, end):
        yield Box(shape, start, lengths)


def _parts(shape: tuple[int, ...], first: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield the start and the lengths of each box."""
    if first >= end:
        return
    if not shape:
        yield (), ()
        return
    inner = shape[1:]
    size = math.prod(inner)
    begin, stop = -(-first // size), end // size  # the range of whole rows
    if first < begin * size:
        row = begin - 1
        for start, lengths in _parts(inner, first - row * size, min(end, begin * size) - row * size):
            yield (row, *start), (1, *lengths)
    if begin < stop:
        yield (begin, *(0 for _ in inner)), (stop - begin, *inner)
    if begin <= stop:
        for start, lengths in _parts(inner, 0, end - stop * size):
            yield (stop, *start), (1, *lengths)
