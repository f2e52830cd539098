"""The format of Cerebras checkpoints: prefixes of objects, and HDF5 files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from fsspec.callbacks import Callback

from fsspec_csx.errors import CheckpointError, ChecksumError, InvalidCheckpointError
from fsspec_csx.formats import reader
from fsspec_csx.formats.base import ON_CPU, Converted, ConvertOptions, Format, ReadOptions
from fsspec_csx.formats.cerebras import folder as cerebras_folder
from fsspec_csx.formats.cerebras import hdf5
from fsspec_csx.formats.cerebras import source as cerebras_source
from fsspec_csx.formats.cerebras.leaf import UnreadValue
from fsspec_csx.formats.cerebras.source import CerebrasSource, LeafSpan
from fsspec_csx.formats.cerebras.writer import CerebrasWriter
from fsspec_csx.formats.checkpoint_info import CheckpointInfo
from fsspec_csx.formats.damage import damage_of
from fsspec_csx.formats.storage_placement import placed
from fsspec_csx.formats.verify_report import Report, Sum
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.tensors.crc32 import RunningCrc32
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.names import listed, walk
from fsspec_csx.tensors.source import Source
from fsspec_csx.tensors.staging import batches


class CerebrasFormat(Format[CerebrasSource]):
    """Tensors by name, and a specification of the nesting."""

    name = "cerebras"
    flattened = True
    writer_class = CerebrasWriter

    def open_file(self, file: Source, head: bytes, folder: Folder, name: str) -> Source | None:
        return hdf5.source(file, folder.name) if head.startswith(hdf5.MAGIC) else None

    def open_folder(
        self, folder: Folder, names: Callable[[], Collection[str]]
    ) -> contextlib.AbstractContextManager[Source | None]:
        return cerebras_folder.opened(folder)

    def structure(self, source: CerebrasSource, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        found = placed(source, source.tensors(), name, options)
        return replace(found, obj=source.rebuild(found.obj, weights_only=options.weights_only))

    def refuse_unread(self, obj: Any, name: str) -> None:
        cerebras_source.refuse_unread(obj, name)

    def info(self, source: CerebrasSource, name: str) -> CheckpointInfo:
        return source.info()

    def examine(self, source: CerebrasSource, name: str, compute: Sum) -> Report:
        """Read all tensors and arrays, and compare them with their checksums.

        Only checkpoints of this package have checksums; cerebras_pytorch saves none. S3's checksums of whole objects
        are always compared. Pickles are only checked for existence.
        """
        try:
            return _examined(source)
        except CheckpointError as error:  # invalid links
            return Report(damage=[damage_of(error, name)])

    def convert(self, source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
        """Convert; this loads the whole source into memory."""
        self.refuse_cast(options)
        keys, _ = reader.begin(source, options.keys, options.name)
        # With keys, the error names an entry that cannot be loaded.
        obj = reader.read(source, name=options.name, keys=(lambda name: True) if keys is None else keys)
        writer = self.writer(obj)
        meter = ProgressMeter(progress, writer.nbytes)
        writer.save(target, advance=meter.advance)
        meter.finish()
        return Converted(0, sum(isinstance(each, torch.Tensor) for _, each in walk(obj)))


_BATCH = 64 * 2**20


def _examined(source: CerebrasSource) -> Report:
    crcs = {place.name: RunningCrc32() for place in source.places()}
    broken = _read_all(source, crcs)
    held = {name: (source.holder(name), source.leaves[source.holder(name)]) for name in source.leaves}
    unread = {name: (holder, leaf) for name, (holder, leaf) in held.items() if isinstance(leaf, UnreadValue)}
    for name, leaf in dict(unread.values()).items():
        if leaf.runs_code and leaf.stored <= _BATCH:
            broken |= _failing(source, name, lambda leaf=leaf: source.pickle_of(leaf))  # type: ignore[misc]
    unread = {name: (holder, leaf) for name, (holder, leaf) in unread.items() if holder not in broken}
    whole = {name: crc.value for name, crc in crcs.items() if name not in broken}
    wrong = [name for name, crc in whole.items() if source.crc32.get(name, crc) != crc]
    pickles = [name for name, (_, leaf) in unread.items() if leaf.runs_code]
    damage = [f"{name!r}: {why}" for name, why in broken.items()]
    damage += [f"the checksum of {name!r} is wrong" for name in wrong]
    damage += [f"{name!r} cannot be read: {leaf!r}" for name, (_, leaf) in unread.items() if not leaf.runs_code]
    notes = [f"{listed(pickles)}: pickles, which may run any code, and so were not looked at"] if pickles else []
    unchecked = sum(name not in source.crc32 for name in crcs)
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
        return {name: damage_of(error, source.name)}
    return {}


def _pieces(places: Sequence[LeafSpan]) -> Iterator[tuple[LeafSpan, int, int]]:
    """Yield all bytes in order: places, and the start and the size of a piece of each."""
    for place in places:
        for start in range(0, place.leaf.nbytes, _BATCH):
            yield place, start, min(_BATCH, place.leaf.nbytes - start)


FORMAT = CerebrasFormat()
