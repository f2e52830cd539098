"""Shards that are spread over prefixes: found by every reader and every command, and by torch's reader."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader

import fsspec_csx
from fsspec_csx import distributed
from fsspec_csx.formats.dcp.layout import MANIFEST, SHARD, is_prefix, shard_name
from fsspec_csx.manage import delete, gc, prune
from fsspec_csx.manage.directory import Directory
from fsspec_csx.manage.list import check_complete, checkpoints, latest_of
from fsspec_csx.manage.verify import verify

NONE = timedelta(0)


def files(path: str) -> list[str]:
    """All files below a folder."""
    return sorted(file.name for found in Directory(path).tree().values() for file in found)


def test_names() -> None:
    """Ranks share so many prefixes, evenly, and a rank has the same in every save."""
    prefixes = [shard_name(rank, 7).partition("/")[0] for rank in range(70)]
    assert len({*prefixes}) == 7
    assert all(is_prefix(each) and prefixes.count(each) == 10 for each in prefixes)
    assert prefixes[0] == shard_name(0, 7)[:8]
    assert SHARD.fullmatch(shard_name(3))
    for wrong in (-1, 5000, 2.0, True):
        with pytest.raises(ValueError, match="prefix_count"):
            distributed.StorageWriter("/x/y", prefix_count=wrong)  # type: ignore[arg-type]


def test_listed_beside_a_model(tmp_path: Path) -> None:
    """They also count in the size of a folder that has a model of Hugging Face."""
    distributed.save({"x": torch.ones(3)}, tmp_path / "1", prefix_count=2)
    fsspec_csx.save({"x": torch.ones(3)}, tmp_path / "1" / "model.safetensors")
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert [(each.files, each.size) for each in checkpoints(tmp_path)] == [(3, sum(sizes))]


@pytest.mark.slow
def test_every_command_finds_them(root: str) -> None:
    """Such a checkpoint is loaded, listed, verified, copied, moved, pruned and deleted as any other."""
    for step in (1, 2):
        state = {"x": torch.full((100,), float(step)), "step": step}
        distributed.save(state, f"{root}/run/checkpoint_{step}", prefix_count=3)
    shard, manifest = sorted(files(f"{root}/run/checkpoint_2"), key=lambda name: name == MANIFEST)
    assert manifest == MANIFEST
    assert is_prefix(shard.partition("/")[0])
    found = checkpoints(f"{root}/run")
    assert [(each.step, each.files, each.size > 400) for each in found] == [(1, 2, True), (2, 2, True)]
    assert [each.size for each in found] == [each.size for each in checkpoints(root, recursive=True)]
    assert not verify(f"{root}/run/checkpoint_2").damage
    check_complete(f"{root}/run/checkpoint_2")
    fsspec_csx.copy(f"{root}/run/checkpoint_2", f"{root}/run/checkpoint_3")
    fsspec_csx.move(f"{root}/run/checkpoint_3", f"{root}/run/checkpoint_4")
    newest = latest_of(checkpoints(f"{root}/run"))
    assert newest is not None
    assert newest.step == 4
    assert fsspec_csx.load(f"{root}/run/checkpoint_4")["x"].sum() == 200
    assert not gc.leftovers(root, older_than=NONE)
    assert not prune.prune(f"{root}/run", 1).failed
    assert {name.partition("/")[0] for name in files(f"{root}/run")} == {"checkpoint_4"}
    assert not delete.delete(delete.targets([f"{root}/run/checkpoint_4"]))
    assert not Directory(root).tree() or files(root) == []


def test_replaced_and_left(root: str) -> None:
    """A save replaces the shards of the former one, with prefixes or without; gc deletes what no manifest names."""
    path = f"{root}/run/checkpoint_1"
    for count in (0, 3, 5, 0, 2):
        save = distributed.save if count != 5 else distributed.async_save
        if saving := save({"x": torch.full((10,), float(count))}, path, prefix_count=count):
            saving.result()
        assert any(is_prefix(name.partition("/")[0]) for name in files(path)) == bool(count)
        assert len(files(path)) == 2
        assert distributed.leftovers(path) == []
    place, kept = Directory(path), files(path)
    left = [shard_name(4, 3), shard_name(5, 2)]
    for name in left:
        with created(place, name) as file:
            file.write(b"left")
    assert distributed.leftovers(path) == sorted(left)
    found = gc.leftovers(root, older_than=NONE)
    assert not gc.clear(found)
    assert files(path) == kept
    assert fsspec_csx.load(path)["x"].sum() == 20


def created(place: Directory, name: str) -> Any:
    """A file in a folder, to write to."""
    if place.fs is None:
        os.makedirs(os.path.dirname(place.at(name)), exist_ok=True)
        return open(place.at(name), "wb")
    return place.fs.open(place.at(name), "wb")


def test_interrupted_save(root: str) -> None:
    """Shards without a manifest are no checkpoint; delete and gc remove them."""
    for remove in (
        lambda path: delete.delete(delete.targets([path])),
        lambda path: gc.clear(gc.leftovers(root, older_than=NONE)),
    ):
        path = f"{root}/run/checkpoint_1"
        distributed.save({"x": torch.ones(10)}, path, prefix_count=2)
        place = Directory(path)
        os.unlink(place.at(MANIFEST)) if place.fs is None else place.fs.rm_file(place.at(MANIFEST))
        assert checkpoints(f"{root}/run") == []
        assert not remove(path)
        assert [name for name in files(root) if "checkpoint_1" in name] == []


def test_steps_of_eight_digits(root: str) -> None:
    """They are no prefixes: neither the folder around them nor a checkpoint in it takes them for its own."""
    steps = [f"{root}/run/0000{step}000" for step in (1, 2)]
    for step in steps:
        distributed.save({"x": torch.ones(10)}, step)
    with pytest.raises(IsADirectoryError):
        delete.targets([f"{root}/run"])
    distributed.save({"x": torch.zeros(10)}, f"{root}/run")
    assert distributed.leftovers(f"{root}/run") == []
    assert not gc.leftovers(root, older_than=NONE)
    assert not delete.delete(delete.targets([f"{root}/run"]))
    assert [fsspec_csx.load(step)["x"].sum() for step in steps] == [10, 10]


def test_reader_of_torch(tmp_path: Path) -> None:
    """torch's own reader reads it, by the names in the manifest."""
    distributed.save({"x": torch.arange(10.0)}, tmp_path / "a", prefix_count=2)
    found = {"x": torch.zeros(10)}
    dcp.load(found, storage_reader=FileSystemReader(tmp_path / "a"), no_dist=True)
    assert found["x"].sum() == 45
