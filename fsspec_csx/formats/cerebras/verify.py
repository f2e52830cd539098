"""Reads a Cerebras checkpoint to see whether it is whole, without keeping it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from fsspec_csx.errors import ChecksumError, InvalidCheckpointError
from fsspec_csx.formats.cerebras.leaf import UnreadValue
from fsspec_csx.formats.cerebras.metadata import damage
from fsspec_csx.formats.cerebras.source import CerebrasSource, LeafSpan
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.staging import batches

_BATCH = 64 * 2**20


class Verdict(NamedTuple):
    """What is known after all was read.

    Attributes:
        damaged: the names of what does not have the CRC-32 that was saved with it.
        unchecked: the names of what has none; if it is on S3, it came as the server has it.
        unread: the names of pickles and other values that were not taken for what they are.
        broken: by the names of what cannot be read as it should be, why not: its object is missing, for instance.
    """

    damaged: list[str]
    unchecked: list[str]
    unread: list[str]
    broken: dict[str, str]


def verified(source: CerebrasSource) -> Verdict:
    """Read all tensors and arrays of a checkpoint, and compare them with their checksums.

    The reference saves none; ``fsspec_csx.save`` saves those of all. What S3 says of whole objects is compared in
    any case. Of pickles it is seen whether they are there.

    Raises:
        OSError: what the filesystem raised, other than that an object is missing or not what the server holds.
    """
    crcs = {place.name: RunningCrc32() for place in source.places()}
    broken: dict[str, str] = {}
    memory = memoryview(bytearray(min(_BATCH, source.size)))
    for batch in batches(_pieces(source.places()), lambda piece: piece[2], _BATCH):
        spans, end = [], 0
        for place, start, size in batch:
            spans.append((place.start + start, memory[end : end + size]))
            end += size
        broken |= _read(source, [(place.name, span) for (place, _, _), span in zip(batch, spans, strict=True)])
        for (place, _, _), (_, piece) in zip(batch, spans, strict=True):
            crcs[place.name].add(piece)
    unread = [name for name in source.leaves if isinstance(source.leaves[source.holder(name)], UnreadValue)]
    for name in dict.fromkeys(source.holder(name) for name in unread):
        leaf = source.leaves[name]
        if isinstance(leaf, UnreadValue) and leaf.runs_code and leaf.stored <= _BATCH:
            broken |= _failing(source, name, lambda leaf=leaf: source.pickle_of(leaf))  # type: ignore[misc]
    return Verdict(
        [name for name, crc in crcs.items() if name not in broken and source.crc32(name) not in (None, crc.value)],
        [name for name in crcs if source.crc32(name) is None],
        unread,
        broken,
    )


def _read(source: CerebrasSource, spans: Sequence[tuple[str, tuple[int, memoryview]]]) -> dict[str, str]:
    """Read spans of values, each by itself if something is wrong with them; what that is."""
    if not _failing(source, "", lambda: source.read([span for _, span in spans])):
        return {}
    found: dict[str, str] = {}
    for name, span in spans:
        if name not in found:
            found |= _failing(source, name, lambda span=span: source.read([span]))  # type: ignore[misc]
    return found


def _failing(source: CerebrasSource, name: str, read: Callable[[], object]) -> dict[str, str]:
    try:
        read()
    except (InvalidCheckpointError, ChecksumError) as error:
        return {name: damage(error, source.name)}
    return {}


def _pieces(places: Sequence[LeafSpan]) -> Iterator[tuple[LeafSpan, int, int]]:
    """All the bytes in order: places, and the start and size of a piece of each."""
    for place in places:
        for start in range(0, place.leaf.nbytes, _BATCH):
            yield place, start, min(_BATCH, place.leaf.nbytes - start)
