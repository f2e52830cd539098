"""The elements of two tensors of one shape, cut into parts that each take few bytes of either file.

Where an element lies follows from strides, counted in elements, as torch has it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

GAP = 64 * 2**10
"""Bytes between those that are wanted that are read rather than passed over."""


class Dim(NamedTuple):
    """A dimension of both tensors: its size, and the stride in each."""

    size: int
    strides: tuple[int, int]


class Tile(NamedTuple):
    """The same part of both tensors.

    Attributes:
        dims: its dimensions.
        starts: where its first element lies in each storage.
    """

    dims: tuple[Dim, ...]
    starts: tuple[int, int]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(dim.size for dim in self.dims)

    def strides(self, side: int) -> tuple[int, ...]:
        """Its strides in one of the tensors."""
        return tuple(dim.strides[side] for dim in self.dims)


class ByteRuns(NamedTuple):
    """Bytes of a storage that lie one behind the other, in as many places as needed, for all elements of a tile.

    Attributes:
        length: of each run, in elements.
        outer: size and stride of the dimensions from one run to the next, the largest stride first.
        strides: those of the tile where its runs are read one behind the other.
    """

    length: int
    outer: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]

    @property
    def total(self) -> int:
        """The elements of all runs."""
        return self.length * math.prod(size for size, _ in self.outer)

    def starts(self, first: int) -> Iterator[int]:
        """Where each run begins in the storage, in elements."""
        for numbers in itertools.product(*(range(size) for size, _ in self.outer)):
            yield first + sum(number * stride for number, (_, stride) in zip(numbers, self.outer, strict=True))


def whole(shape: Sequence[int], strides: tuple[Sequence[int], Sequence[int]], starts: tuple[int, int]) -> Tile:
    """All of two tensors, with no more dimensions than needed, and not in their order: that of the first's memory.

    Args:
        shape: of both.
        strides: of each.
        starts: where the first element of each lies in its storage.
    """
    dims = [Dim(*dim) for dim in zip(shape, zip(*strides, strict=True), strict=True) if dim[0] != 1]
    merged: list[Dim] = []
    for dim in sorted(dims, key=lambda each: each.strides, reverse=True):
        last = merged[-1] if merged else None
        if last is not None and last.strides == (dim.strides[0] * dim.size, dim.strides[1] * dim.size):
            merged[-1] = Dim(last.size * dim.size, dim.strides)
        else:
            merged.append(dim)
    return Tile(tuple(merged), starts)


def cut(tile: Tile, widths: tuple[int, int], most: int) -> Iterator[Tile]:
    """The parts of a tile, each of whose runs take so many bytes at most on either side, the first elements first.

    Args:
        widths: bytes of an element of each tensor.
        most: at least those.
    """
    taken = (runs(tile, side, widths[side]).total * widths[side] for side in (0, 1))
    if all(size <= most for size in taken) or all(dim.size == 1 for dim in tile.dims):
        yield tile
        return
    at = max(range(len(tile.dims)), key=lambda number: tile.dims[number].size)
    size, strides = tile.dims[at]
    half = size // 2
    first, second = tile.starts
    behind = (first + half * strides[0], second + half * strides[1])
    for count, starts in ((half, tile.starts), (size - half, behind)):
        yield from cut(Tile((*tile.dims[:at], Dim(count, strides), *tile.dims[at + 1 :]), starts), widths, most)


def runs(tile: Tile, side: int, width: int) -> ByteRuns:
    """What has to be read of a tensor for a tile.

    Args:
        side: which of the two.
        width: bytes of an element.
    """
    length = 1
    outer: list[tuple[int, int]] = []
    strides = [0] * len(tile.dims)
    step = 0
    for number in sorted(range(len(tile.dims)), key=lambda each: tile.dims[each].strides[side]):
        size, stride = tile.dims[number].size, tile.dims[number].strides[side]
        if size == 1 or not stride:
            continue
        if not outer and (stride - length) * width <= GAP:
            length += (size - 1) * stride
            strides[number] = stride
        else:
            strides[number] = step or length
            step = strides[number] * size
            outer.insert(0, (size, stride))
    return ByteRuns(length, tuple(outer), tuple(strides))
