"""Divides strided tensors into parts, and yields their elements in order, as files without strides store them.

The tensors may only describe those of a file: their memory is not accessed, and their strides give positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.source import memory_at

_STAGED = 16 * 2**20

GAP = 64 * 2**10
"""In bytes; a larger gap between wanted elements is skipped instead of read."""


def extent(tensor: torch.Tensor) -> int:
    """Return the bytes from the first element of a tensor to the last, both included; 0 if it is empty."""
    if not tensor.numel():
        return 0
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (int(steps) + 1) * tensor.element_size()


def first_dim(tensor: torch.Tensor) -> int:
    """Return the first dimension that can be divided; parts along it follow in the tensor's order."""
    return next(dim for dim, size in enumerate(tensor.shape) if size > 1)


def widest_dim(tensor: torch.Tensor) -> int:
    """Return the dimension with the largest stride."""
    return max(range(tensor.dim()), key=lambda dim: tensor.stride(dim) if tensor.shape[dim] > 1 else -1)


def pieces(
    *tensors: torch.Tensor,
    fits: Callable[..., bool],
    dim: Callable[[torch.Tensor], int] = first_dim,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield the same parts of several tensors of one shape, halved until each part fits or has one element.

    Args:
        fits: whether parts of all tensors need not be divided.
        dim: returns the dimension of the first tensor to divide.
    """
    if tensors[0].numel() <= 1 or fits(*tensors):
        yield tensors
        return
    at = dim(tensors[0])
    size = tensors[0].shape[at]
    half = size // 2
    for start, length in ((0, half), (half, size - half)):
        yield from pieces(*(tensor.narrow(at, start, length) for tensor in tensors), fits=fits, dim=dim)


def merged(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two tensors of one shape with as few dimensions as possible, in the memory order of the first."""
    if first.dim() == 1 and len(first) > 1:
        return first, second
    both = zip(first.stride(), second.stride(), strict=True)
    dims = [dim for dim in zip(first.shape, both, strict=True) if dim[0] != 1]
    kept: list[tuple[int, tuple[int, int]]] = []
    for size, (one, other) in sorted(dims, key=lambda dim: dim[1], reverse=True):
        if kept and kept[-1][1] == (one * size, other * size):
            kept[-1] = (kept[-1][0] * size, (one, other))
        else:
            kept.append((size, (one, other)))
    shape = [size for size, _ in kept]
    made = [
        tensor.as_strided(shape, [strides[side] for _, strides in kept]) for side, tensor in enumerate((first, second))
    ]
    return made[0], made[1]


def has_gaps(tensor: torch.Tensor) -> bool:
    """Return whether more than ``GAP`` bytes lie between neighboring elements in memory."""
    length = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride:
            if (stride - length) * tensor.element_size() > GAP:
                return True
            length += (size - 1) * stride
    return False


def on_bytes(tensor: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the layout of another, and these bytes as its memory."""
    made = data.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
    made = made.conj() if tensor.is_conj() else made
    return torch_compat.neg_view(made) if tensor.is_neg() else made


def memories(
    tensor: torch.Tensor,
    dtype: torch.dtype,
    staging: torch.Tensor,
    seen: Callable[[torch.Tensor, torch.Tensor], object] = lambda piece, cast: None,
) -> Iterator[memoryview]:
    """Yield the elements of a strided tensor, cast to a dtype, in pieces.

    Args:
        staging: CPU memory for a piece, which limits its size.
        seen: called with each staged piece, before and after the cast.

    Yields:
        CPU memory, directly of the tensor if possible; it is valid until the next piece.
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
    """Return the memory of a contiguous CPU tensor, which it keeps alive."""
    return memory_at(tensor.data_ptr(), tensor.nbytes, tensor)


def staged(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a contiguous tensor of another device, in pieces whose memory is reused."""
    flat = tensor.reshape(-1).view(torch.uint8)
    size = min(_STAGED, len(flat))
    staging = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=flat.device.type == "cuda")
    return memories(flat, torch.uint8, staging)
