"""Compares pairs of tensors of two files, while their next bytes are read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from fsspec_csx.tensors import numeric_error, tiling
from fsspec_csx.tensors.lazy_object import Record
from fsspec_csx.tensors.numeric_error import Closeness, NumericError
from fsspec_csx.tensors.source import Source
from fsspec_csx.tensors.tensor_stream import StreamedTensor, TensorStream


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
    """Compare the tensors of each pair, which ``numeric_error.can_compare`` must accept.

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
                numeric_error.compare(one, other, closeness, pair.found)


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
