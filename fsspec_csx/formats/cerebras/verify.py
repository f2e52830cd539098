"""Finds damage in a Cerebras checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from fsspec_csx.errors import ChecksumError, InvalidCheckpointError
from fsspec_csx.formats.cerebras.leaf import UnreadValue
from fsspec_csx.formats.cerebras.metadata import damage
from fsspec_csx.formats.cerebras.source import CerebrasSource, LeafSpan
from fsspec_csx.formats.verify_report import Report
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.names import listed
from fsspec_csx.tensors.staging import batches

_BATCH = 64 * 2**20


def examine(source: CerebrasSource) -> Report:
    """Read all tensors and arrays of a checkpoint, and compare them with their checksums.

    Only checkpoints of this package have checksums; cerebras_pytorch saves none. S3's checksums of whole objects are
    always compared. Pickles are only checked for existence.

    Raises:
        CheckpointError: if links are invalid.
    """
    crcs = {place.name: RunningCrc32() for place in source.places()}
    broken = _read_all(source, crcs)
    held = {name: (source.holder(name), source.leaves[source.holder(name)]) for name in source.leaves}
    unread = {name: (holder, leaf) for name, (holder, leaf) in held.items() if isinstance(leaf, UnreadValue)}
    for name, leaf in dict(unread.values()).items():
        if leaf.runs_code and leaf.stored <= _BATCH:
            broken |= _failing(source, name, lambda leaf=leaf: source.pickle_of(leaf))  # type: ignore[misc]
    unread = {name: (holder, leaf) for name, (holder, leaf) in unread.items() if holder not in broken}
    wrong = [name for name, crc in crcs.items() if name not in broken and source.crc32(name) not in (None, crc.value)]
    pickles = [name for name, (_, leaf) in unread.items() if leaf.runs_code]
    damage = [f"{name!r}: {why}" for name, why in broken.items()]
    damage += [f"the checksum of {name!r} is wrong" for name in wrong]
    damage += [f"{name!r} cannot be read: {leaf!r}" for name, (_, leaf) in unread.items() if not leaf.runs_code]
    notes = [f"{listed(pickles)}: pickles, which may run any code, and so were not looked at"] if pickles else []
    unchecked = sum(source.crc32(name) is None for name in crcs)
    return Report(len(crcs) - unchecked, unchecked + len(unread), damage, notes)


def _read_all(source: CerebrasSource, crcs: dict[str, RunningCrc32]) -> dict[str, str]:
    """Add the bytes of all tensors and arrays to ``crcs``; return the damage of those that cannot be read, by name."""
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
    return broken


def _read(source: CerebrasSource, spans: Sequence[tuple[str, tuple[int, memoryview]]]) -> dict[str, str]:
    """Read spans of values; after an error, read each alone. Return the damage by name."""
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
    """Yield all bytes in order: places, and the start and the size of a piece of each."""
    for place in places:
        for start in range(0, place.leaf.nbytes, _BATCH):
            yield place, start, min(_BATCH, place.leaf.nbytes - start)
