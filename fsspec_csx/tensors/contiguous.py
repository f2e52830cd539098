"""A tensor's elements in their order, as files have them that know nothing of strides; in pieces of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fsspec_csx.tensors.source import memory_at


def memories(
    tensor: torch.Tensor,
    dtype: torch.dtype,
    staging: torch.Tensor,
    seen: Callable[[torch.Tensor, torch.Tensor], object] = lambda piece, cast: None,
) -> Iterator[memoryview]:
    """The bytes of a tensor's elements, cast to a dtype, in pieces.

    Args:
        tensor: strided, on any device.
        dtype: what its elements are cast to.
        staging: bytes of the CPU that may be written to; a piece has as many of them at most.
        seen: is given each piece that is put there, as it was, and as it is.

    Yields:
        Memory of the CPU, of the tensor itself where it is as wanted already; gone when the next is asked for.
    """
    for piece in _pieces(tensor, len(staging) // max(tensor.element_size(), dtype.itemsize)):
        plain = piece.dtype == dtype and piece.is_contiguous() and piece.device.type == "cpu"
        if not plain or piece.is_conj() or piece.is_neg():
            staged = staging[: piece.numel() * dtype.itemsize].view(dtype).view(piece.shape).copy_(piece)
            seen(piece, staged)
            piece = staged
        yield memory(piece)


def memory(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, which it keeps alive."""
    return memory_at(tensor.data_ptr(), tensor.nbytes, tensor)


def extent(tensor: torch.Tensor) -> int:
    """How many bytes lie between the first of a tensor and the last, those included; it has some."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (int(steps) + 1) * tensor.element_size()


def compact(tensor: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Parts that follow each other in the tensor's order, and stretch over so many bytes of memory at most.

    One whose rows lie between each other in memory is a part of its own: all of its memory is needed for the first.
    """
    whole = extent(tensor)
    if whole <= most:
        yield tensor
        return
    step, row = tensor.stride(0) * tensor.element_size(), extent(tensor[0])
    if 0 < step < row and len(tensor) > 1:
        yield tensor
    elif row > most or not step:
        for each in tensor:
            yield from compact(each, most)
    else:
        count = 1 + (most - row) // step
        yield from (tensor[start : start + count] for start in range(0, len(tensor), count))


def _pieces(tensor: torch.Tensor, most: int) -> Iterator[torch.Tensor]:
    """Parts that follow each other in the tensor's order, of so many elements at most."""
    if tensor.numel() <= most:
        yield tensor
        return
    rows = most * len(tensor) // tensor.numel()
    if rows:
        yield from (tensor[start : start + rows] for start in range(0, len(tensor), rows))
    else:
        for row in tensor:
            yield from _pieces(row, most)
