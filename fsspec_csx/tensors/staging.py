"""Staging: bounded memory that is reused for batches of bytes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from fsspec_csx.storage.threads import result_of
from fsspec_csx.tensors.source import memory_of

T = TypeVar("T")

_ALIGNMENT = 64


def aligned(size: int) -> int:
    """Round a size in bytes up so that elements of any dtype can follow."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def batches(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """Yield batches of items in order, of at most ``most`` bytes, or a single larger item."""
    batch: list[T] = []
    taken = 0
    for item in items:
        needed = size(item)
        if batch and taken + needed > most:
            yield batch
            batch, taken = [], 0
        batch.append(item)
        taken += needed
    if batch:
        yield batch


@contextlib.contextmanager
def read_ahead(reads: Iterable[Callable[[], T]]) -> Iterator[Iterator[T]]:
    """Yield an iterator over the results of reads, in order; a thread runs the next read while a result is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="fsspec_csx read ahead") as reader:
        left = iter(reads)
        following = [reader.submit(read) for read in itertools.islice(left, 1)]

        def results() -> Iterator[T]:
            while following:
                result = result_of(following.pop())
                following.extend(reader.submit(read) for read in itertools.islice(left, 1))
                yield result

        yield results()


class Staging:
    """CPU memory that is reused for each batch; a batch above ``size`` bytes gets its own memory.

    If it is ``pinned``, a CUDA device can read it directly.
    """

    def __init__(self, size: int, *, pinned: bool = False) -> None:
        self.size = size
        self._tensor = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)

    def slots(self, sizes: Iterable[int]) -> list[tuple[torch.Tensor, memoryview]]:
        """Return consecutive slots of the given sizes, each as a tensor of bytes and as memory."""
        sizes = list(sizes)
        total = sum(map(aligned, sizes))
        tensor = self._tensor if total <= self.size else torch.empty(total, dtype=torch.uint8, device="cpu")
        memory = memory_of(tensor.untyped_storage())
        found, start = [], 0
        for size in sizes:
            found.append((tensor[start : start + size], memory[start : start + size]))
            start += aligned(size)
        return found
