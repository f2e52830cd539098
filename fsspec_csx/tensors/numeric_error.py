"""How far the elements of two tensors are apart, computed piece by piece."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

# Elements at a time: what is made of them stays near the processor, and torch starts no threads for so few.
_STEP = 2**15 - 1
_WORD = torch.int64
_NOTHING = torch.zeros((), dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Closeness:
    """How far two elements that count as equal may be apart: relative to the second, and besides."""

    rtol: float = 0.0
    atol: float = 0.0


@dataclass
class NumericError:
    """How far two tensors are apart.

    Attributes:
        elements: how many of them differ.
        absolute: the largest difference of two elements that count as different; NaN if one of them is NaN.
        relative: the largest relative to the second tensor's element; infinite if that is 0.
    """

    elements: int = 0
    absolute: float = 0.0
    relative: float = 0.0

    def add(self, count: int, absolute: float, relative: float) -> None:
        """Take in those of some more elements."""
        self.elements += count
        self.absolute = _larger(self.absolute, absolute)
        self.relative = _larger(self.relative, relative)


def _larger(first: float, second: float) -> float:
    if isinstance(first, float) and math.isnan(first):
        return first
    return second if second > first or second != second else first


def compare(first: torch.Tensor, second: torch.Tensor, closeness: Closeness, found: NumericError) -> None:
    """Compare two tensors of the CPU, of one dimension and contiguous, and take in how far they are apart.

    NaN equals NaN. Whole numbers are compared exactly, and never lose a digit. Tensors of different dtypes are compared
    as those of the one that holds both. What has no numbers that torch computes with is compared by its bytes.
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
    # Many times as fast in words as in bytes.
    return torch.equal(one[:even].view(_WORD), other[:even].view(_WORD)) and torch.equal(one[even:], other[even:])


def _is_number(dtype: torch.dtype) -> bool:
    """Whether torch can cast it."""
    try:
        torch.empty(1, dtype=dtype, device="cpu").to(torch.complex128)
    except (NotImplementedError, RuntimeError):
        return False
    return True


def can_compare(first: torch.dtype, second: torch.dtype) -> bool:
    """Whether the elements of tensors of these dtypes can be compared."""
    if first == second:
        return True
    # No kind of whole number holds both.
    beyond = torch.uint64 in (first, second) and any(_is_whole(dtype) and dtype.is_signed for dtype in (first, second))
    return _is_number(first) and _is_number(second) and not beyond


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex


def _unequal(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if one.is_complex():
        return _unequal(one.real, other.real) | _unequal(one.imag, other.imag)
    return (one != other) & ~(one.isnan() & other.isnan())


def _compare_floats(first: torch.Tensor, second: torch.Tensor, closeness: Closeness, found: NumericError) -> None:
    """Take in the elements that differ and are not close."""
    dtype = torch.complex128 if first.is_complex() or second.is_complex() else torch.float64
    one, other = first.to(dtype), second.to(dtype)
    apart, size = (one - other).abs(), other.abs()
    finite = math.isfinite(apart.max())
    far = apart != 0 if finite else _unequal(one, other)  # if there is neither infinity nor NaN, the one is the other
    if closeness.rtol or closeness.atol:
        far &= ~(apart.isfinite() & (apart <= closeness.atol + closeness.rtol * size))
    if not (count := int(far.count_nonzero())):
        return
    relative = apart / size if finite else torch.where(apart.isinf(), apart, apart / size)
    # Not by far as an index, which takes many times as long.
    found.add(count, float(apart.where(far, _NOTHING).max()), float(relative.where(far, _NOTHING).max()))


def _compare_whole(first: torch.Tensor, second: torch.Tensor, closeness: Closeness, found: NumericError) -> None:
    """Whole numbers, by their order in 64 bits: the true difference of two takes 65."""
    unsigned = torch.uint64 in (first.dtype, second.dtype)
    one, other = _ordered(first, unsigned), _ordered(second, unsigned)
    differing = one != other
    count = int(differing.count_nonzero())
    if not count:
        return
    apart = torch.maximum(one, other) - torch.minimum(one, other)
    wide = apart < 0  # it wraps around where it takes the 64th bit
    sizes = (other.to(torch.float64) + 2.0**63) if unsigned else other.to(torch.float64).abs()
    true = apart.to(torch.float64)
    if wide.any():
        true = torch.where(wide, true + 2.0**64, true)
        largest = int(torch.where(wide, apart, torch.iinfo(apart.dtype).min).max()) + 2**64
    else:
        largest = int(apart.max())
    found.add(count, largest, float((true / sizes).where(differing, _NOTHING).max()))


def _ordered(tensor: torch.Tensor, unsigned: bool) -> torch.Tensor:
    """As int64; if any are of 64 bits without a sign, less 2**63, so that their order stays."""
    if not unsigned:
        return tensor.to(torch.int64)
    if tensor.dtype == torch.uint64:
        return tensor.view(torch.int64) ^ torch.iinfo(torch.int64).min
    return tensor.to(torch.int64) ^ torch.iinfo(torch.int64).min
