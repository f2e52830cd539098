"""Converts a checkpoint of any format to a sharded one, one tensor at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from fsspec.callbacks import Callback
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItem

from fsspec_csx.distributed.api import write_alone
from fsspec_csx.distributed.planner import Planner
from fsspec_csx.distributed.storage_writer import StorageWriter
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import placeholders, reader
from fsspec_csx.formats.base import Converted, ConvertOptions
from fsspec_csx.formats.damage import wrong_checksum
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.formats.torch_zip.pickled import Pickled
from fsspec_csx.formats.writer import Target
from fsspec_csx.tensors import fill, names, torch_compat
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.memory import reserved
from fsspec_csx.tensors.names import Choice
from fsspec_csx.tensors.source import Source


def write_sharded(source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
    """Write an open checkpoint of any format as a sharded one with one shard; see ``Format.convert``.

    Raises:
        CheckpointError: if the source is invalid, or not a mapping.
        ValueError: if a sharded checkpoint cannot hold an entry, which the message names.
    """
    name = options.name
    keys, format = reader.begin(source, options.keys, name)
    found = reader.structure(source, name)
    obj = found.obj if keys is None else names.select(found.obj, Choice(found.obj, keys, name))
    if not isinstance(obj, dict):
        reason = f"{name} holds a {type(obj).__name__}, not a state dict."
        raise InvalidCheckpointError(reason, "Only mappings can be sharded.")
    format.refuse_unread(obj, name)
    placeholders.refuse(obj, name)
    writer = StorageWriter(ShardedFolder(target.fs, target.path, target.name), callback=progress)
    try:
        metadata = write_alone(
            obj, writer, _StreamingPlanner(source, found, name), commit=lambda: source.verify_whole(name)
        )
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
            raise wrong_checksum(self._name, names.shown([each.name for each in wrong]))

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
            raise wrong_checksum(self._name, repr(write_item.index.fqn))
        made = torch.empty(0, dtype=given.dtype)
        made.set_(own.storage, given.storage_offset(), given.shape, given.stride())
        made = made.conj() if given.is_conj() else made
        return torch_compat.neg_view(made) if given.is_neg() else made
