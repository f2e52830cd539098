"""torch.distributed.checkpoint at any fsspec URL: storage classes, and functions for whole checkpoints.

    import torch.distributed.checkpoint as dcp
    from fsspec_csx.distributed import StorageReader, StorageWriter

    dcp.save(state_dict, storage_writer=StorageWriter("s3://bucket/run/checkpoint_100"))
    dcp.load(state_dict, storage_reader=StorageReader("s3://bucket/run/checkpoint_100"))

A checkpoint is a folder with a shard for each rank and a manifest, ``.metadata``. The manifest is written last and
atomically; without it there is no checkpoint. Shard names are unique, so the old checkpoint at a path stays complete
until the new manifest replaces the old one; then the old shards are removed. torch's readers read these folders, and
``StorageReader`` reads those of torch's writers.
"""

from fsspec_csx.distributed.api import leftovers, load, save, whole
from fsspec_csx.distributed.async_save import async_save
from fsspec_csx.distributed.storage_reader import StorageReader
from fsspec_csx.distributed.storage_writer import StorageWriter

__all__ = [
    "StorageReader",
    "StorageWriter",
    "async_save",
    "leftovers",
    "load",
    "save",
    "whole",
]
