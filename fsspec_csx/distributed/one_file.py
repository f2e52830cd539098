"""to_one_file and from_one_file: a sharded checkpoint as a file of torch.save and back, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItem

from fsspec_csx.atomic import replacing
from fsspec_csx.checkpoint import locate
from fsspec_csx.distributed.calls import unwrapped
from fsspec_csx.distributed.paths import Path, folder_at
from fsspec_csx.distributed.writer import StorageWriter
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import fill, names, torch_archive, torch_zip
from fsspec_csx.formats.pickled import Pickled
from fsspec_csx.formats.placing import reserved
from fsspec_csx.formats.skeleton import Skeleton
from fsspec_csx.formats.source import Source, memory_of
from fsspec_csx.formats.torch_layout import Layout, laid_out
from fsspec_csx.paths import checkpoint_path, redacted
from fsspec_csx.sharded import manifest, whole
from fsspec_csx.sharded.folder import Folder
from fsspec_csx.sharded.reading import read_tensors

_TOGETHER = 64 * 2**20


def to_one_file(
    path: Path,
    file: Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    file_options: Mapping[str, Any] | None = None,
) -> None:
    """Write all of a sharded checkpoint to a file that ``torch.load`` reads.

    It takes the memory of the largest tensor, or 64 MiB, and what is being sent.

    Args:
        path: that of the folder.
        file: that of the file, which is replaced only by a whole one.
        storage_options: arguments for the folder's filesystem.
        file_options: arguments for the file's.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        CheckpointError: a ValueError, if the checkpoint is not what it should be.
        OSError: whatever a filesystem raised, as it raised it.
    """
    text = checkpoint_path(file)
    folder = folder_at(path, storage_options)
    metadata = manifest.read(folder)
    state = whole.nested(metadata)
    entries = [entry for _, entry in names.walk(state) if isinstance(entry, whole.Entry)]
    # Memory that nobody touches takes none.
    tensors = {entry.name: whole.empty(folder, metadata, entry) for entry in entries if entry.tensor}
    made = whole.replaced(state, {**tensors, **whole.values(folder, metadata, entries)})
    by_address = {tensors[entry.name].data_ptr(): entry for entry in entries if entry.tensor}
    fs, inner = locate(file, text, file_options)
    layout = laid_out(Pickled(made))
    with replacing(fs, inner) as target:
        if layout is None:  # torch before 2.6 has to have all of it
            torch.save(whole.read(folder), target)
        else:
            layout.write(target.write, target.write, _contents(folder, metadata, layout, by_address))


def _contents(
    folder: Folder, metadata: Metadata, layout: Layout, by_address: Mapping[int, whole.Entry]
) -> Iterator[list[memoryview]]:
    """The bytes of each storage, several read at a time."""
    batch: list[whole.Entry] = []
    taken = 0
    for storage in layout.storages:
        if batch and taken + storage.nbytes() > _TOGETHER:
            yield from _read(folder, metadata, batch)
            batch, taken = [], 0
        batch.append(by_address[storage.data_ptr()])
        taken += storage.nbytes()
    yield from _read(folder, metadata, batch)


def _read(folder: Folder, metadata: Metadata, entries: list[whole.Entry]) -> Iterator[list[memoryview]]:
    filled = [whole.empty(folder, metadata, entry) for entry in entries]
    parts = [whole.wanted(folder, metadata, *each) for each in zip(entries, filled, strict=True)]
    read_tensors(folder, [each for of_tensor in parts for each in of_tensor])
    for tensor in filled:
        yield [memory_of(tensor.untyped_storage())]


def from_one_file(
    file: Path,
    path: Path,
    *,
    file_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write a state dict that ``torch.save`` wrote as a sharded checkpoint, of one shard.

    It takes the memory of the largest tensor, and what is being sent.

    Args:
        file: that of the file.
        path: that of the folder; a checkpoint that is there is replaced only by a whole one.
        file_options: arguments for the file's filesystem.
        storage_options: arguments for the folder's.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        CheckpointError: a ValueError, if the file is not what it should be, or no mapping.
        OSError: whatever a filesystem raised, as it raised it.
    """
    text = checkpoint_path(file)
    name = redacted(text)
    above, _, last = text.rpartition("/")
    fs, inner = locate(file, text, file_options)
    with Folder(fs, inner.rpartition("/")[0] or above, name).open(inner.rpartition("/")[2] or last) as opened:
        size = opened.seek(0, 2)
        opened.seek(0)
        source = Source(opened, size)
        found = torch_zip.skeleton(source, name=name, map_location="cpu")
        if not isinstance(found.obj, dict):
            reason = f"{name} holds a {type(found.obj).__name__}, no state dict."
            raise InvalidCheckpointError(reason, "Only mappings can be sharded.")
        writer = StorageWriter(path, storage_options=storage_options)
        planner = _Filling(source, found, name)
        try:
            with unwrapped(None):
                state_dict_saver.save(found.obj, storage_writer=writer, planner=planner, no_dist=True)
        except BaseException:
            writer.discard()
            raise


class _Filling(DefaultSavePlanner):
    """Gives out tensors one after the other: each is read from the file when it is asked for, into memory of its own.

    Args:
        source: the file.
        found: what is in it; its tensors are never filled.
        name: what errors call the file.
    """

    def __init__(self, source: Source, found: Skeleton, name: str) -> None:
        super().__init__()
        self._source = source
        self._records = {record.storage.data_ptr(): record for record in found.records}
        self._name = name

    def resolve_data(self, write_item: WriteItem) -> Any:
        """A tensor with its bytes, or a value as a file."""
        given = super().resolve_data(write_item)
        if not isinstance(given, torch.Tensor):
            return given
        record = self._records.get(given.untyped_storage().data_ptr())
        if record is None:  # it has no bytes, or was read with the structure
            return given
        own = replace(record, storage=reserved(record.storage.nbytes(), torch.device("cpu")))
        if fill.fill(self._source, [own]):
            raise torch_archive.damaged(self._name, repr(write_item.index.fqn))
        made = torch.empty(0, dtype=given.dtype)
        made.set_(own.storage, given.storage_offset(), given.shape, given.stride())
        made = made._conj() if given.is_conj() else made
        return made._neg_view() if given.is_neg() else made
