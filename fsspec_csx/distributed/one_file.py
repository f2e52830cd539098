"""to_one_file and from_one_file: a sharded checkpoint as a file of torch.save and back, in bounded memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from fsspec.callbacks import Callback
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem

from fsspec_csx.atomic import replacing
from fsspec_csx.checkpoint import locate
from fsspec_csx.distributed.paths import Path, folder_at
from fsspec_csx.distributed.writer import StorageWriter
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import fill, torch_archive, torch_zip
from fsspec_csx.formats.converting import Converting
from fsspec_csx.formats.placing import reserved
from fsspec_csx.formats.skeleton import Skeleton
from fsspec_csx.formats.source import Source
from fsspec_csx.paths import checkpoint_path, redacted
from fsspec_csx.progress import Meter, reporting
from fsspec_csx.sharded.folder import Folder
from fsspec_csx.sharded.source import ShardedSource


def to_one_file(
    path: Path,
    file: Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    file_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> None:
    """Write all of a sharded checkpoint to a file that ``torch.load`` reads.

    It takes some 50 MiB of memory, and what is being sent.

    Args:
        path: that of the folder.
        file: that of the file, which is replaced only by a whole one.
        storage_options: arguments for the folder's filesystem.
        file_options: arguments for the file's.
        callback: as of ``fsspec_csx.save``.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        CheckpointError: a ValueError, if the checkpoint is not what it should be.
        OSError: whatever a filesystem raised, as it raised it.
    """
    text = checkpoint_path(file)
    fs, inner = locate(file, text, file_options)
    folder = folder_at(path, storage_options)
    with reporting(callback, text) as progress, contextlib.closing(ShardedSource(folder)) as source:
        converting = Converting(source, name=folder.name, as_safetensors=False)
        meter = Meter(progress, converting.nbytes, estimated=True)
        with replacing(fs, inner) as target:
            converting.write(target, advance=meter.advance)
        meter.finish()


def from_one_file(
    file: Path,
    path: Path,
    *,
    file_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> None:
    """Write a state dict that ``torch.save`` wrote as a sharded checkpoint, of one shard.

    It takes the memory of the largest tensor, and what is being sent.

    Args:
        file: that of the file.
        path: that of the folder; a checkpoint that is there is replaced only by a whole one.
        file_options: arguments for the file's filesystem.
        storage_options: arguments for the folder's.
        callback: as of ``fsspec_csx.save``.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        CheckpointError: a ValueError, if the file is not what it should be, or no mapping.
        OSError: whatever a filesystem raised, as it raised it.
    """
    text = checkpoint_path(file)
    name = redacted(text)
    above, _, last = text.rpartition("/")
    fs, inner = locate(file, text, file_options)
    beside = Folder(fs, inner.rpartition("/")[0] or above, name)
    with reporting(callback, os.fspath(path)) as progress, beside.open(inner.rpartition("/")[2] or last) as opened:
        size = opened.seek(0, 2)
        opened.seek(0)
        source = Source(opened, size)
        found = torch_zip.skeleton(source, name=name, map_location="cpu")
        if not isinstance(found.obj, dict):
            reason = f"{name} holds a {type(found.obj).__name__}, no state dict."
            raise InvalidCheckpointError(reason, "Only mappings can be sharded.")
        writer = StorageWriter(path, storage_options=storage_options, callback=progress)
        planner = _Filling(source, found, name)
        try:
            _save_alone(found.obj, writer, planner)
        except BaseException:
            writer.discard()
            raise


def _save_alone(obj: dict[str, Any], writer: StorageWriter, planner: DefaultSavePlanner) -> None:
    """As ``dcp.save`` by this process alone, which not all releases of torch can be told."""
    planner.set_up_planner(obj, writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans, metadata = planner.create_global_plan([writer.prepare_local_plan(planner.create_local_plan())])
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
    writer.finish(metadata, [writer.write_data(plan, planner).wait()])


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
