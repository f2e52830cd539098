"""A tensor's elements in their order, as files have them that know nothing of strides; in pieces of a bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fsspec_csx.tensors.source import memory_at
from fsspec_csx.tensors.tiling import pieces

_STAGED = 16 * 2**20


def memories(
    tensor: torch.Tensor,
    dtype: torch.dtype,
    staging: torch.Tensor,
    seen: Callable[[torch.Tensor, torch.Tensor], object] = lambda piece, cast: None,
) -> Iterator[memoryview]:
    """The bytes of a strided tensor's elements, cast to a dtype, in pieces.

    Args:
        staging: bytes of the CPU that may be written to; a piece has as many of them at most.
        seen: is given each piece that is put there, as it was, and as it is.

    Yields:
        Memory of the CPU, of the tensor itself where it is as wanted already; gone when the next is asked for.
    """
    most = len(staging) // max(tensor.element_size(), dtype.itemsize)
    for (piece,) in pieces(tensor, fits=lambda part: part.numel() <= most):
        plain = piece.dtype == dtype and piece.is_contiguous() and piece.device.type == "cpu"
        if not plain or piece.is_conj() or piece.is_neg():
            staged = staging[: piece.numel() * dtype.itemsize].view(dtype).view(piece.shape).copy_(piece)
            seen(piece, staged)
            piece = staged
        yield memory(piece)


def memory(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, which it keeps alive."""
    return memory_at(tensor.data_ptr(), tensor.nbytes, tensor)


def staged(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor of another device, in pieces whose memory is used again."""
    flat = tensor.reshape(-1).view(torch.uint8)
    size = min(_STAGED, len(flat))
    staging = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=flat.device.type == "cuda")
    return memories(flat, torch.uint8, staging)
