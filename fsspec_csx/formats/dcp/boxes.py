"""Boxes: parts of tensors that lie row-major in a file, and the bytes that they are spread over."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_GAP = 64 * 2**10  # what lies between two runs of bytes is read with them if it is no more


@dataclass(frozen=True)
class Box:
    """A part of a tensor.

    Attributes:
        shape: of the tensor.
        start: the first index in each dimension.
        lengths: how many indices in each.
    """

    shape: tuple[int, ...]
    start: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many elements it has."""
        return math.prod(self.lengths)

    @property
    def strides(self) -> tuple[int, ...]:
        """From each element to the next in each dimension, in elements of the tensor."""
        return tuple(math.prod(self.shape[dimension + 1 :]) for dimension in range(len(self.shape)))

    @property
    def first(self) -> int:
        """The number of its first element in the tensor."""
        return sum(start * stride for start, stride in zip(self.start, self.strides, strict=True))

    @property
    def spread(self) -> int:
        """How many elements of the tensor there are from its first to its last, both included; 0 if it has none."""
        if not self.count:
            return 0
        return 1 + sum((length - 1) * stride for length, stride in zip(self.lengths, self.strides, strict=True))

    @property
    def whole(self) -> bool:
        """Whether it is all of the tensor."""
        return self.lengths == self.shape

    def fits(self) -> bool:
        """Whether the tensor has such a part."""
        sizes = zip(self.start, self.lengths, self.shape, strict=True)
        return all(start >= 0 and length >= 0 and start + length <= size for start, length, size in sizes)


def pieces(box: Box, itemsize: int, most: int) -> Iterator[Box]:
    """Parts of a box, in the order of the file, each spread over few bytes, and these mostly its own.

    Args:
        box: which has elements.
        itemsize: of an element in bytes.
        most: how many bytes a part may be spread over.
    """
    own, spread = box.count * itemsize, box.spread * itemsize
    if box.count == 1 or (spread <= most and spread - own <= max(own, (_runs(box) - 1) * _GAP)):
        yield box
        return
    dimension = next(number for number, length in enumerate(box.lengths) if length > 1)
    half = box.lengths[dimension] // 2
    for start, length in ((0, half), (half, box.lengths[dimension] - half)):
        yield from pieces(
            Box(
                box.shape,
                _with(box.start, dimension, box.start[dimension] + start),
                _with(box.lengths, dimension, length),
            ),
            itemsize,
            most,
        )


def boxes_of(shape: tuple[int, ...], first: int, end: int) -> Iterator[Box]:
    """The boxes that a run of elements of a tensor consists of, in order: few, each with elements.

    Args:
        shape: of the tensor.
        first: the number of the first element.
        end: that of the one after the last.
    """
    for start, lengths in _parts(shape, first, end):
        yield Box(shape, start, lengths)


def _parts(shape: tuple[int, ...], first: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Where each box starts, and how long it is."""
    if first >= end:
        return
    if not shape:
        yield (), ()
        return
    inner = shape[1:]
    size = math.prod(inner)
    begin, stop = -(-first // size), end // size  # the rows that are whole
    if first < begin * size:
        row = begin - 1
        for start, lengths in _parts(inner, first - row * size, min(end, begin * size) - row * size):
            yield (row, *start), (1, *lengths)
    if begin < stop:
        yield (begin, *(0 for _ in inner)), (stop - begin, *inner)
    if begin <= stop:
        for start, lengths in _parts(inner, 0, end - stop * size):
            yield (stop, *start), (1, *lengths)


def _runs(box: Box) -> int:
    """How many runs of elements that follow each other it consists of, at most."""
    last = max((number for number, size in enumerate(box.shape) if box.lengths[number] != size), default=0)
    return math.prod(box.lengths[:last])


def _with(values: Sequence[int], position: int, value: int) -> tuple[int, ...]:
    return (*values[:position], value, *values[position + 1 :])
