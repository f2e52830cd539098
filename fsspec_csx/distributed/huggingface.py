"""Makes a manifest for a Hugging Face folder, so that each rank can read its own parts."""

from __future__ import annotations

import functools

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from fsspec_csx.formats import registry
from fsspec_csx.formats.dcp.manifest import Plain, place
from fsspec_csx.formats.huggingface.source import HuggingFaceSource
from fsspec_csx.storage.folder import Folder


def metadata_of(folder: Folder) -> Metadata | None:
    """Return a manifest for a Hugging Face folder, with each tensor in one part; None if it is no such folder."""
    with registry.get_format("huggingface").open_folder(folder, functools.cache(folder.names)) as source:
        if source is None:
            return None
        assert isinstance(source, HuggingFaceSource)
        found = source.tensors()
        records = {record.storage.data_ptr(): record for record in found.records}
        metadata = Metadata({}, planner_data={name: (name,) for name in found.obj}, storage_data={})
        for name, tensor in found.obj.items():
            record = records.get(tensor.untyped_storage().data_ptr()) if tensor.nbytes else None
            shard, offset = source.locate(record.offset) if record else (source.shards[0], 0)
            chunk = ChunkStorageMetadata(torch.Size([0] * tensor.dim()), tensor.shape)
            properties = TensorProperties(dtype=tensor.dtype)
            metadata.state_dict_metadata[name] = TensorStorageMetadata(properties, tensor.shape, [chunk])
            plain = Plain(0, tensor.dtype, tuple(tensor.shape), None)
            metadata.storage_data[MetadataIndex(name, chunk.offsets)] = place(shard, offset, tensor.nbytes, plain)
        return metadata
