"""Reads a Cerebras checkpoint to see whether it is whole, without keeping it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zlib_ng import zlib_ng

from fsspec_csx.formats.cerebras_leaf import Unread
from fsspec_csx.formats.cerebras_source import CerebrasSource, Place

_BATCH = 64 * 2**20


class Verdict(NamedTuple):
    """What is known after all was read.

    Attributes:
        damaged: the names of what does not have the CRC-32 that was saved with it.
        unchecked: the names of what has none; if it is on S3, it came as the server has it.
        unread: the names of pickles and other values that were not read.
    """

    damaged: list[str]
    unchecked: list[str]
    unread: list[str]


def verified(source: CerebrasSource) -> Verdict:
    """Read all tensors and arrays of a checkpoint, and compare them with their checksums.

    The reference saves none; ``fsspec_csx.save`` saves those of all. What S3 tells of whole objects is compared in
    any case.

    Raises:
        InvalidCheckpointError: if an object is missing, or not of its size.
        OSError: what the filesystem raised.
    """
    crcs: dict[str, int] = {place.name: 0 for place in source.places()}
    memory = memoryview(bytearray(min(_BATCH, source.size)))
    for batch in _batches(source.places()):
        spans, end = [], 0
        for place, start, size in batch:
            spans.append((place.start + start, memory[end : end + size]))
            end += size
        source.read(spans)
        for (place, _, _), (_, piece) in zip(batch, spans, strict=True):
            crcs[place.name] = zlib_ng.crc32(piece, crcs[place.name])
    return Verdict(
        [name for name, crc in crcs.items() if source.crc32(name) not in (None, crc)],
        [name for name in crcs if source.crc32(name) is None],
        [name for name in source.leaves if isinstance(source.leaves[source.holder(name)], Unread)],
    )


def _batches(places: Sequence[Place]) -> Iterator[list[tuple[Place, int, int]]]:
    """All the bytes in order, as many at a time as are in memory: places, and the start and size of a piece of each."""
    batch: list[tuple[Place, int, int]] = []
    taken = 0
    for place in places:
        start = 0
        while start < place.leaf.nbytes:
            size = min(place.leaf.nbytes - start, _BATCH - taken)
            batch.append((place, start, size))
            start, taken = start + size, taken + size
            if taken == _BATCH:
                yield batch
                batch, taken = [], 0
    if batch:
        yield batch
