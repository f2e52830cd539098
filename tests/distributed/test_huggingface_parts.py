"""distributed.load reads Hugging Face folders; each process reads its own parts."""

from __future__ import annotations

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import MetadataIndex

from fsspec_csx import distributed, save
from fsspec_csx.distributed.storage_reader import metadata_of
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.formats.dcp.reader import TensorRead, read_tensors

WEIGHT = torch.arange(600, dtype=torch.bfloat16).reshape(20, 30)
STATE = {"a.w": WEIGHT, "b": torch.ones(7), "tied": WEIGHT, "none": torch.empty(0, 3)}


def test_load(root: str) -> None:
    """Tensors that are there are filled; a file that is missing is named."""
    for folder, options in (("m", {"format": "huggingface", "max_shard_size": 100}), ("lone/model.safetensors", {})):
        state = {name: each for name, each in STATE.items() if options or name != "tied"}
        save(state, f"{root}/{folder}", **options)
        path = f"{root}/{folder}".removesuffix("/model.safetensors")
        into = {name: torch.zeros_like(each) for name, each in state.items()}
        distributed.load(into, path)
        assert all(torch.equal(into[name], state[name]) for name in state)
        part = {"b": torch.zeros(7)}
        dcp.load(part, storage_reader=distributed.StorageReader(path))
        assert part["b"].sum() == 7
    fs, path = fsspec.url_to_fs(f"{root}/m")
    fs.rm_file(next(name for name in fs.ls(path, detail=False) if "-00002-of-" in name))
    with pytest.raises(InvalidCheckpointError, match="-00002-of-"):
        distributed.load({"b": torch.zeros(7)}, f"{root}/m")
    with pytest.raises(FileNotFoundError):
        distributed.load({"b": torch.zeros(7)}, f"{root}/nothing")


def test_parts(root: str) -> None:
    """A rectangle of a tensor is read where it lies."""
    save(STATE, f"{root}/m", format="huggingface", max_shard_size=100)
    fs, path = fsspec.url_to_fs(f"{root}/m")
    folder = ShardedFolder(fs, path, "it")
    metadata = metadata_of(folder)
    assert metadata is not None
    target = torch.zeros(5, 4, dtype=torch.bfloat16)
    place = metadata.storage_data[MetadataIndex("tied", torch.Size([0, 0]))]
    read_tensors(folder, [TensorRead("tied", place, (3, 20), target)])
    assert torch.equal(target, WEIGHT[3:8, 20:24])
