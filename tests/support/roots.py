"""Creates roots of checkpoints fast."""

from __future__ import annotations

import pickle
from typing import Any

import fsspec

ODD = ("a#b.mdl", "q?.mdl", "50%.mdl", "ä ö.mdl", "x*.mdl", "[1].mdl", "a b.mdl", "%20.mdl")
"""Names that look like something else than names."""


def fill(root: str, *names: str, data: bytes = b"data", **options: Any) -> None:
    """Write files of these names below a root; of none is a name a pattern."""
    fs, path = fsspec.url_to_fs(root, **options)
    for name in names:
        fs.makedirs(fs._parent(f"{path}/{name}"), exist_ok=True)
        fs.pipe_file(f"{path}/{name}", data)


def left(root: str, **options: Any) -> list[str]:
    """The names of all files below a root."""
    fs, path = fsspec.url_to_fs(root, **options)
    fs.invalidate_cache()
    names = (name[len(path) + 1 :] for name in fs.find(path))
    return sorted(name for name in names if name and not name.endswith("/"))  # the server keeps empty folders


def manifest(*shards: str, size: int = 4) -> bytes:
    """The manifest of a checkpoint of torch.distributed.checkpoint, with one value of so many bytes in each shard."""
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

    from fsspec_csx.formats.dcp.manifest import place

    names = dict.fromkeys(shards)
    made = Metadata({name: BytesStorageMetadata() for name in names})
    made.storage_data = {MetadataIndex(name): place(name, 0, size) for name in names}
    return pickle.dumps(made)
