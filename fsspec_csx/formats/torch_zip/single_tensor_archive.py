"""Torch files of single tensors, for thousands of them: all tensors of one dtype and shape share a template."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fsspec_csx.formats.torch_zip import zip_directory
from fsspec_csx.formats.torch_zip.archive_writer import Layout, combine, plan_archive
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.formats.torch_zip.zip_directory import LOCAL
from fsspec_csx.tensors.crc32 import crc32_of

_KEPT = 4096


@dataclass(frozen=True)
class Frame:
    """What torch.save writes around the bytes of a tensor.

    Attributes:
        before: the bytes before them.
        after: returns the bytes behind them, given their CRC-32.
        size: of the file in bytes.
    """

    before: bytes
    after: Callable[[int], bytes]
    size: int


@functools.lru_cache(_KEPT)
def frame(dtype: torch.dtype, shape: Sequence[int]) -> Frame | None:
    """Return the frame of a row-major CPU tensor; None if it is empty, or torch's layout is unknown."""
    tensor = torch.empty(tuple(shape), dtype=dtype, device="cpu")
    layout = plan_archive(Pickled(tensor)) if tensor.nbytes else None
    if layout is None:
        return None
    before, after = _around(layout)
    return Frame(before, _Ending(after, layout.nbytes), layout.nbytes)


class _Ending:
    """The end of a file behind the tensor's bytes; five places in it depend on their CRC-32.

    Args:
        after: the end of a file whose tensor's bytes have the CRC-32 0.
        size: of the file.
    """

    def __init__(self, after: bytes, size: int) -> None:
        start = size - len(after)
        span = zip_directory.locate(after, size)
        assert span is not None
        directory = span.start - start
        entries = zip_directory.entries(after[directory : directory + span.size], span)
        assert entries is not None
        *others, identity = entries
        tensor = next(number for number, entry in enumerate(others) if entry.name == b"archive/data/0")
        self._former = functools.reduce(combine, (entry.crc32 for entry in others[:tensor]), 0)
        self._later = [entry.crc32 for entry in others[tensor + 1 :]]
        header = identity.header - start
        offset = zip_directory.data_offset(after[header : header + LOCAL.size], identity)
        assert offset is not None
        digits = offset - start + 20
        self._names_hash = after[digits - 20 : digits]
        places = [(4, 4), (digits, 20), (digits + 24, 4)]
        places += [(after.index(entry.name, directory) - 30, 4) for entry in (others[tensor], identity)]
        ends = [0, *(at + length for at, length in places)]
        self._between = [after[end:at] for end, (at, _) in zip(ends, [*places, (len(after), 0)], strict=True)]

    def __call__(self, crc: int) -> bytes:
        combined = functools.reduce(combine, self._later, combine(self._former, crc))
        digits = b"%020d" % combined
        of_tensor = crc.to_bytes(4, "little")
        of_identity = crc32_of(self._names_hash + digits).to_bytes(4, "little")
        first, second, third, fourth, fifth, last = self._between
        return b"".join(
            (first, of_tensor, second, digits, third, of_identity, fourth, of_tensor, fifth, of_identity, last)
        )


def _around(layout: Layout) -> tuple[bytes, bytes]:
    """Return the parts of an archive before and behind the bytes of its only storage, as if their CRC-32 were 0."""
    parts = [bytearray()]

    def fill(storage: torch.UntypedStorage) -> int:
        parts.append(bytearray())
        return 0

    layout.write_around(lambda data: parts[-1].extend(data), fill)
    return bytes(parts[0]), bytes(parts[1])
