"""``to_one_file`` and ``from_one_file``: convert a sharded checkpoint to one file and back, in bounded memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from fsspec.callbacks import Callback
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItem

from fsspec_csx.distributed.api import write_alone
from fsspec_csx.distributed.paths import Path, folder_at
from fsspec_csx.distributed.planner import Planner
from fsspec_csx.distributed.storage_writer import StorageWriter
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import opening, reader, registry
from fsspec_csx.formats.base import Converted, ConvertOptions
from fsspec_csx.formats.dcp.folder import ShardedFolder
from fsspec_csx.formats.dcp.source import ShardedSource
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import placeholders
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.files import resolve_path
from fsspec_csx.storage.paths import checkpoint_path, redacted
from fsspec_csx.storage.progress import report_progress
from fsspec_csx.tensors import fill, names, torch_compat
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.memory import reserved
from fsspec_csx.tensors.names import Choice
from fsspec_csx.tensors.source import Source


def to_one_file(
    path: Path,
    file: Path,
    *,
    storage_options: Mapping[str, Any] | None = None,
    file_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> None:
    """Write a sharded checkpoint to one file that ``torch.load`` reads.

    It needs about 50 MiB of memory, and the memory of requests in flight.

    Args:
        path: the folder.
        file: the file, replaced only by a complete one.
        storage_options: arguments for the folder's filesystem.
        file_options: arguments for the file's filesystem.
        callback: see ``fsspec_csx.save``.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        CheckpointError: a ValueError, if the checkpoint is invalid.
        OSError: any error of a filesystem, unchanged.
    """
    text = checkpoint_path(file)
    fs, inner = resolve_path(file, text, file_options)
    folder = folder_at(path, storage_options)
    with report_progress(callback, text) as progress, contextlib.closing(ShardedSource(folder)) as source:
        options, target = ConvertOptions(folder.name), Target(fs, inner, redacted(text))
        registry.get_format("torch").convert(source, options, target, progress)


def from_one_file(
    file: Path,
    path: Path,
    *,
    file_options: Mapping[str, Any] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> None:
    """Write the state dict in a file of any format as a sharded checkpoint with one shard.

    It needs the memory of the largest tensor and of requests in flight. An existing checkpoint is replaced only by a
    complete one. For the arguments and errors see ``to_one_file``.
    """
    with (
        report_progress(callback, os.fspath(path)) as progress,
        opening.checkpoint(file, file_options) as (source, name),
    ):
        folder = folder_at(path, storage_options)
        write_sharded(source, ConvertOptions(name), Target(folder.fs, folder.path, folder.name), progress)


def write_sharded(source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
    """Write an open checkpoint of any format as a sharded one; see ``from_one_file`` and ``Format.convert``.

    Raises:
        CheckpointError: if the source is invalid, or not a mapping.
        ValueError: if a sharded checkpoint cannot hold an entry, which the message names.
    """
    name = options.name
    keys = source.select_keys(options.keys, name)
    found = reader.structure(source, name)
    obj = found.obj if keys is None else names.select(found.obj, Choice(found.obj, keys, name))
    if not isinstance(obj, dict):
        reason = f"{name} holds a {type(obj).__name__}, not a state dict."
        raise InvalidCheckpointError(reason, "Only mappings can be sharded.")
    registry.format_of(source).refuse_unread(obj, name)
    placeholders.refuse(obj, name)
    writer = StorageWriter(ShardedFolder(target.fs, target.path, target.name), callback=progress)
    try:
        metadata = write_alone(obj, writer, _StreamingPlanner(source, found, name))
    except BaseException:
        writer.discard()
        raise
    return Converted(0, sum(isinstance(each, TensorStorageMetadata) for each in metadata.state_dict_metadata.values()))


class _StreamingPlanner(Planner):
    """Provides tensors one at a time, each read from the file when it is requested."""

    def __init__(self, source: Source, found: LazyObject, name: str) -> None:
        super().__init__()
        self._source = source
        self._records = {record.storage.data_ptr(): record for record in found.records}
        self._name = name

    def check_value(self, name: str, value: Any) -> None:
        """Also read the tensors in a value, such as a tuple, since they are pickled with it."""
        super().check_value(name, value)
        there = {storage.data_ptr() for storage in Pickled(value).storages}
        if wrong := fill.fill(self._source, [self._records[each] for each in there if each in self._records]):
            raise torch_archive.damaged(self._name, names.shown([each.name for each in wrong]))

    def resolve_data(self, write_item: WriteItem) -> Any:
        """Return a tensor with its bytes, or a value as a file."""
        given = super().resolve_data(write_item)
        if not isinstance(given, torch.Tensor):
            return given
        record = self._records.get(given.untyped_storage().data_ptr())
        if record is None:  # empty, or read with the structure
            return given
        own = replace(record, storage=reserved(record.storage.nbytes(), torch.device("cpu")))
        if fill.fill(self._source, [own]):
            raise torch_archive.damaged(self._name, repr(write_item.index.fqn))
        made = torch.empty(0, dtype=given.dtype)
        made.set_(own.storage, given.storage_offset(), given.shape, given.stride())
        made = made.conj() if given.is_conj() else made
        return torch_compat.neg_view(made) if given.is_neg() else made
