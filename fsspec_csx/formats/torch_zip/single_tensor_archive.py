"""A torch file of a single tensor, for thousands of them: made once for all tensors of a dtype and a shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fsspec_csx.formats.torch_zip.layout import Layout, plan_archive
from fsspec_csx.formats.torch_zip.pickled import Pickled

_KEPT = 4096


@dataclass(frozen=True)
class Frame:
    """What torch.save writes around the bytes of a tensor.

    Attributes:
        before: what comes first.
        after: gives what follows, for the CRC-32 of the bytes.
        size: of the file in bytes.
    """

    before: bytes
    after: Callable[[int], bytes]
    size: int


@functools.lru_cache(_KEPT)
def frame(dtype: torch.dtype, shape: Sequence[int]) -> Frame | None:
    """The frame of a row-major tensor on the CPU; None if it has no bytes, or another layout."""
    tensor = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    layout = plan_archive(Pickled(tensor)) if tensor.nbytes else None
    if layout is None:
        return None
    before, _ = _around(layout, 0)
    return Frame(before, lambda crc: _around(layout, crc)[1], layout.nbytes)


def _around(layout: Layout, crc: int) -> tuple[bytes, bytes]:
    """What comes before the bytes of the only storage, and behind them."""
    parts = [bytearray()]

    def fill(storage: torch.UntypedStorage) -> int:
        parts.append(bytearray())
        return crc

    layout.write_around(lambda data: parts[-1].extend(data), fill)
    return bytes(parts[0]), bytes(parts[1])
