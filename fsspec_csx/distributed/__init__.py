"""torch.distributed.checkpoint on any fsspec URL: its storage, and sharded checkpoints as a whole.

    import torch.distributed.checkpoint as dcp
    from fsspec_csx.distributed import StorageReader, StorageWriter

    dcp.save(state_dict, storage_writer=StorageWriter("s3://bucket/run/checkpoint_100"))
    dcp.load(state_dict, storage_reader=StorageReader("s3://bucket/run/checkpoint_100"))

A checkpoint is a folder of one shard for each rank and a manifest, ``.metadata``, that is written last and at once:
without it there is no checkpoint. A shard's name is never used again, so that an old checkpoint of the same path stays
whole until the new manifest takes its place; then its shards are removed. torch's own readers read these folders, and
these read those of torch's own writers.
"""

from fsspec_csx.distributed.api import leftovers, load, save, whole
from fsspec_csx.distributed.consolidate import from_one_file, to_one_file
from fsspec_csx.distributed.storage_reader import StorageReader
from fsspec_csx.distributed.storage_writer import StorageWriter

__all__ = ["StorageReader", "StorageWriter", "from_one_file", "leftovers", "load", "save", "to_one_file", "whole"]
