"""Compares pairs of tensors of two files, while their next bytes are read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from fsspec_csx.tensors import tiling
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.source import Source
from fsspec_csx.tensors.tensor_stream import StreamedTensor, TensorStream

# Elements at a time: their results fit the processor's cache, and torch starts no threads for so few.
_STEP = 2**15 - 1
_WORD = torch.int64
_NOTHING = torch.zeros((), dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Closeness:
    """The tolerance for elements to count as equal, relative to the second element and absolute."""

    rtol: float = 0.0
    atol: float = 0.0


@dataclass
class NumericError:
    """The differences between two tensors.

    Attributes:
        elements: how many elements differ.
        absolute: the largest difference of two elements that count as different; NaN if one of them is NaN.
        relative: the largest difference relative to the second tensor's element; infinite if that is 0.
    """

    elements: int = 0
    absolute: float = 0.0
    relative: float = 0.0

    def add(self, count: int, absolute: float, relative: float) -> None:
        """Add the differences of more elements."""
        self.elements += count
        self.absolute = _larger(self.absolute, absolute)
        self.relative = _larger(self.relative, relative)


def _larger(first: float, second: float) -> float:
    if isinstance(first, float) and math.isnan(first):
        return first
    return second if second > first or second != second else first


def _compare_elements(first: torch.Tensor, second: torch.Tensor, closeness: Closeness, found: NumericError) -> None:
    """Compare two contiguous one-dimensional CPU tensors, and add their differences.

    NaN equals NaN. Integers are compared exactly. Tensors of different dtypes are compared in a dtype that holds both.
    Elements of dtypes that torch cannot compute with are compared by their bytes.
    """
    if _same_bytes(first, second):
        return
    numbers = _is_number(first.dtype) and _is_number(second.dtype)
    if not numbers and first.dtype != second.dtype:
        msg = f"Tensors of {first.dtype} and {second.dtype} cannot be compared. Cast one of them."
        raise NotImplementedError(msg)
    if not numbers:
        first, second = first.view(torch.uint8), second.view(torch.uint8)
    kernel = _compare_whole if _is_whole(first.dtype) and _is_whole(second.dtype) else _compare_floats
    for start in range(0, len(first), _STEP):
        one, other = first[start : start + _STEP], second[start : start + _STEP]
        if not _same_bytes(one, other):
            kernel(one, other, closeness, found)


def _same_bytes(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype:
        return False
    one, other = first.view(torch.uint8), second.view(torch.uint8)
    even = len(one) // _WORD.itemsize * _WORD.itemsize
    aligned = not (one.data_ptr() % _WORD.itemsize or other.data_ptr() % _WORD.itemsize)
    if not aligned or not even:
        return torch.equal(one, other)
    # Comparing words is many times faster than comparing bytes.
    return torch.equal(one[:even].view(_WORD), other[:even].view(_WORD)) and torch.equal(one[even:], other[even:])


def _is_number(dtype: torch.dtype) -> bool:
    try:
        torch.empty(1, dtype=dtype, device="cpu").to(torch.complex128)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def can_compare(first: torch.dtype, second: torch.dtype) -> bool:
    """Return whether the elements of tensors of these dtypes can be compared."""
    if first == second:
        return True
    # No integer dtype holds both.
    beyond = torch.uint64 in (first, second) and any(_is_whole(dtype) and dtype.is_signed for dtype in (first, second))
    return _is_number(first) and _is_number(second) and not beyond


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex


def _unequal(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if one.is_complex():
        return _unequal(one.real, other.real) | _unequal(one.imag, other.imag)
    return (one != other) & ~(one.isnan() & other.isnan())


def _compare_floats(first: torch.Tensor, second: torch.Tensor, closeness: Closeness, found: NumericError) -> None:
    """Add the elements that differ and are not close."""
    dtype = torch.complex128 if first.is_complex() or second.is_complex() else torch.float64
    one, other = first.to(dtype), second.to(dtype)
    apart, size = (one - other).abs(), other.abs()
    finite = math.isfinite(apart.max())
    far = apart != 0 if finite else _unequal(one, other)  # without infinity and NaN, both are equivalent
    if closeness.rtol or closeness.atol:
        far &= ~(apart.isfinite() & (apart <= closeness.atol + closeness.rtol * size))
    if not (count := int(far.count_nonzero())):
        return
    relative = apart / size if finite else torch.where(apart.isinf(), apart, apart / size)
    # Not far as an index, which is many times slower.
    found.add(count, float(apart.where(far, _NOTHING).max()), float(relative.where(far, _NOTHING).max()))


def _compare_whole(first: torch.Tensor, second: torch.Tensor, closeness: Closeness, found: NumericError) -> None:
    """Add the integers that differ, in a 64-bit order; the true difference of two needs 65 bits."""
    unsigned = torch.uint64 in (first.dtype, second.dtype)
    one, other = _ordered(first, unsigned), _ordered(second, unsigned)
    differing = one != other
    count = int(differing.count_nonzero())
    if not count:
        return
    apart = torch.maximum(one, other) - torch.minimum(one, other)
    wide = apart < 0  # the difference needs the 64th bit
    sizes = (other.to(torch.float64) + 2.0**63) if unsigned else other.to(torch.float64).abs()
    true = apart.to(torch.float64)
    if wide.any():
        true = torch.where(wide, true + 2.0**64, true)
        largest = int(torch.where(wide, apart, torch.iinfo(apart.dtype).min).max()) + 2**64
    else:
        largest = int(apart.max())
    found.add(count, largest, float((true / sizes).where(differing, _NOTHING).max()))


def _ordered(tensor: torch.Tensor, unsigned: bool) -> torch.Tensor:
    """Convert to int64 in the same order; if either dtype is uint64, subtract 2**63."""
    if not unsigned:
        return tensor.to(torch.int64)
    if tensor.dtype == torch.uint64:
        return tensor.view(torch.int64) ^ torch.iinfo(torch.int64).min
    return tensor.to(torch.int64) ^ torch.iinfo(torch.int64).min


@dataclass(frozen=True)
class ComparedPair:
    """Two tensors of one shape, each with its dtype, and the differences found so far."""

    sides: tuple[StreamedTensor, StreamedTensor]
    found: NumericError = field(default_factory=NumericError)


class ComparedFile(NamedTuple):
    """One of two files, and a function that returns the error for a record with a wrong checksum."""

    source: Source
    damaged: Callable[[Record], Exception]


def compare(files: tuple[ComparedFile, ComparedFile], pairs: Sequence[ComparedPair], closeness: Closeness) -> None:
    """Compare the tensors of each pair, which ``can_compare`` must accept.

    ``TensorStream`` limits the memory for each file. All records that are read are checked against their checksums.
    """
    pairs = [pair for pair in pairs if pair.sides[0].nbytes]
    merged = [tiling.merged(*(each.tensor for each in pair.sides)) for pair in pairs]
    with torch.no_grad(), contextlib.ExitStack() as stack:
        streams = []
        for side, file in enumerate(files):
            tensors = [replace(pair.sides[side], tensor=both[side]) for pair, both in zip(pairs, merged, strict=True)]
            streams.append(stack.enter_context(TensorStream(file.source, tensors, file.damaged).reading()))
        for pair, *pieces in zip(pairs, *streams, strict=True):
            elements = [_elements(each, side.dtype) for each, side in zip(pieces, pair.sides, strict=True)]
            for one, other in _side_by_side(*elements):
                _compare_elements(one, other, closeness, pair.found)


def _elements(pieces: Iterator[memoryview], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    for piece in pieces:
        yield torch.frombuffer(piece, dtype=torch.uint8).view(dtype)


def _side_by_side(
    first: Iterator[torch.Tensor], second: Iterator[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the elements of two tensors in pieces of equal lengths."""
    one = other = torch.empty(0)
    while True:
        one = one if len(one) else next(first, one)
        other = other if len(other) else next(second, other)
        count = min(len(one), len(other))
        if not count:
            return
        yield one[:count], other[:count]
        one, other = one[count:], other[count:]
