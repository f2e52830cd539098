"""list, copy, move, delete and convert on checkpoints that are folders: Cerebras ones, and sharded ones."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
import torch
from cerebras import DATA, changed, expected, headers, objects, readable, same, upload
from commands import DONE, FAILED, cszoo, failure, run
from proxy import fault_proxy
from roots import fill, left

from fsspec_csx import copy, distributed, load, move, save
from fsspec_csx.errors import CheckpointPathError
from fsspec_csx.manage.list import checkpoints, latest_of
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

CASE = "weights_plain"
KEYS = sorted(objects(CASE))


def report(fs: CSXFileSystem, path: str) -> dict[str, dict[str, str]]:
    """The user metadata of the objects of a checkpoint."""
    return {key: dict(fs.metadata(f"{path}/{key}", refresh=True)) for key in objects(CASE)}


@pytest.fixture
def held(fs: CSXFileSystem, bucket: str, environment: LocalS3) -> str:
    """A bucket with a Cerebras checkpoint, and another object of nearly its name."""
    upload(fs, CASE, f"{bucket}/checkpoint_5.mdl")
    fs.pipe_file(f"{bucket}/checkpoint_5.mdl0", b"other")
    return bucket


# -- list --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recursive", [False, True])
def test_listed(held: str, fs: CSXFileSystem, recursive: bool) -> None:
    """A Cerebras folder is one checkpoint with the size of all its objects; one that was not finished is none."""
    upload(fs, "partial", f"{held}/checkpoint_6.mdl")
    (found,) = checkpoints(f"s3://{held}", recursive=recursive)
    assert (found.path, found.step, found.sharded) == (f"s3://{held}/checkpoint_5.mdl", 5, True)
    assert (found.files, found.size) == (len(KEYS), sum(map(len, objects(CASE).values())))
    assert latest_of(checkpoints(f"s3://{held}", recursive=recursive)) == found


def test_listed_locally(tmp_path: Path) -> None:
    """Metadata alone is a checkpoint, of values; a damaged one is none, nor one whose end only seems to be there."""
    changed(tmp_path / "checkpoint_1.mdl", CASE)
    changed(tmp_path / "checkpoint_2.mdl", CASE, __SUCCESS__=None)
    (tmp_path / "checkpoint_3.mdl").mkdir()
    (tmp_path / "checkpoint_3.mdl" / "__METADATA__").write_bytes(b"nothing")
    (tmp_path / "checkpoint_4.mdl").mkdir()
    changed(tmp_path / "checkpoint_4.mdl", "empty_dict")
    for each in (tmp_path / "checkpoint_4.mdl").iterdir():
        if each.name != "__METADATA__":
            each.unlink()
    assert [found.step for found in checkpoints(tmp_path)] == [1, 4]


# -- copy and move -----------------------------------------------------------------------------------------------------


def test_copied_and_moved(held: str, fs: CSXFileSystem) -> None:
    """All objects and their user metadata come along, and nothing of a neighbour; the copy loads."""
    assert copy(f"s3://{held}/checkpoint_5.mdl", f"s3://{held}/copy/") == f"s3://{held}/copy/checkpoint_5.mdl"
    assert left(f"s3://{held}/copy") == [f"checkpoint_5.mdl/{key}" for key in KEYS]
    assert report(fs, f"{held}/copy/checkpoint_5.mdl") == report(fs, f"{held}/checkpoint_5.mdl")
    assert any(report(fs, f"{held}/checkpoint_5.mdl").values())
    move(f"s3://{held}/checkpoint_5.mdl", f"s3://{held}/moved.mdl")
    assert left(f"s3://{held}/moved.mdl") == KEYS
    assert left(f"s3://{held}/checkpoint_5.mdl") == []
    assert fs.cat_file(f"{held}/checkpoint_5.mdl0") == b"other"
    assert load(f"s3://{held}/moved.mdl").keys() == load(f"s3://{held}/copy/checkpoint_5.mdl").keys()


def test_copied_over(held: str, fs: CSXFileSystem) -> None:
    """--force replaces a checkpoint: what it has no more goes, and an object that lost its metadata is sent again."""
    upload(fs, "nested", f"{held}/x.mdl")
    body = next(key for key in KEYS if headers(CASE)[key])
    fs.pipe_file(f"{held}/x.mdl/{body}", objects(CASE)[body])
    with pytest.raises(FileExistsError):
        copy(f"s3://{held}/checkpoint_5.mdl", f"s3://{held}/x.mdl")
    copy(f"s3://{held}/checkpoint_5.mdl", f"s3://{held}/x.mdl", overwrite=True)
    assert left(f"s3://{held}/x.mdl") == KEYS
    assert report(fs, f"{held}/x.mdl") == headers(CASE)


def test_copied_to_another_server(held: str, fs: CSXFileSystem, server: LocalS3) -> None:
    """Through this machine's memory the user metadata comes along too."""
    with fault_proxy(server.endpoint_url) as proxy:
        there = {**server.storage_options(), "endpoint_url": proxy.url}
        copy(f"s3://{held}/checkpoint_5.mdl", f"s3://{held}/there.mdl", target_options=there)
    assert report(fs, f"{held}/there.mdl") == headers(CASE)


def test_no_copy_without_user_metadata(held: str, tmp_path: Path) -> None:
    """Where objects have no user metadata there is no copy, and the error says what to do."""
    for target in (str(tmp_path / "x.mdl"), "memory://x.mdl"):
        with pytest.raises(CheckpointPathError, match="cannot hold the user metadata") as raised:
            copy(f"s3://{held}/checkpoint_5.mdl", target)
        assert "convert" in raised.value.remedy
    assert not (tmp_path / "x.mdl").exists()
    assert not fsspec.filesystem("memory").exists("/x.mdl")


# -- delete ------------------------------------------------------------------------------------------------------------


def test_deleted(held: str, fs: CSXFileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    """Exactly its objects go; a folder without metadata is no checkpoint."""
    fs.pipe_file(f"{held}/checkpoint_5.mdl/deep/er", b"of another")
    fill(f"s3://{held}/plain.mdl", "weight")
    assert run("delete", f"s3://{held}/checkpoint_5.mdl", "--yes", "--json") == DONE
    (gone,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert gone["files"] == len(KEYS)
    assert left(f"s3://{held}") == ["checkpoint_5.mdl/deep/er", "checkpoint_5.mdl0", "plain.mdl/weight"]
    assert run("delete", f"s3://{held}/plain.mdl", "--yes") == FAILED


@pytest.mark.slow
def test_in_processes(held: str, tmp_path: Path) -> None:
    """The commands as they are typed."""
    listed = cszoo("list", f"s3://{held}", "--latest")
    assert (listed.returncode, listed.stdout.split()[-1:]) == (DONE, [f"s3://{held}/checkpoint_5.mdl"])
    refused, remedy = failure(cszoo("copy", f"s3://{held}/checkpoint_5.mdl", f"{tmp_path}/"))
    assert "user metadata" in refused
    assert "convert" in remedy


# -- convert -----------------------------------------------------------------------------------------------------------

STATE = {"model": {"w": torch.arange(12.0).view(3, 4), "n": torch.arange(3)}, "names": ["a", "b"], "step": 7}


@pytest.fixture
def sharded(root: str) -> str:
    """A sharded checkpoint, on each kind of filesystem."""
    distributed.save(STATE, f"{root}/sharded_7")
    return f"{root}/sharded_7"


def test_sharded_to_one_file(sharded: str, tmp_path: Path) -> None:
    """All of it, cast, a part of it, or its tensors alone; into a folder under its name with a suffix."""
    assert run("convert", sharded, f"{tmp_path}/out/") == DONE
    assert same(load(tmp_path / "out" / "sharded_7.mdl"), STATE)
    assert run("convert", sharded, f"{tmp_path}/half.mdl", "--dtype", "float16", "--keys", "model") == DONE
    half = {"w": STATE["model"]["w"].half(), "n": STATE["model"]["n"]}  # type: ignore[index]
    assert same(load(tmp_path / "half.mdl"), {"model": half})
    assert run("convert", sharded, f"{tmp_path}/x.safetensors", "--drop-values") == DONE
    assert set(load(tmp_path / "x.safetensors")) == {"model.w", "model.n"}


def test_one_file_to_sharded(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file becomes a folder that torch's own reader reads, whole or in part; what is there stays unless --force."""
    save(STATE, tmp_path / "model_7.mdl")
    assert run("convert", str(tmp_path / "model_7.mdl"), f"{root}/", "--format", "distributed", "--json") == DONE
    report = json.loads(capsys.readouterr().out)
    assert (report["path"], report["format"], report["tensors"]) == (f"{root}/model_7", "distributed", 2)
    assert same(load(f"{root}/model_7"), STATE)
    again = ("convert", str(tmp_path / "model_7.mdl"), f"{root}/model_7", "--format", "distributed")
    assert run(*again) == FAILED
    assert run(*again, "--force", "--keys", "step", "model.n") == DONE
    assert same(load(f"{root}/model_7"), {"model": {"n": STATE["model"]["n"]}, "step": 7})  # type: ignore[index]
    assert run(*again, "--force", "--dtype", "float16") == FAILED
    assert run("convert", str(tmp_path / "model_7.mdl"), str(tmp_path / "model_7.mdl"), *again[3:], "--force") == FAILED
    assert same(load(tmp_path / "model_7.mdl"), STATE)


def test_cerebras_to_one_file(held: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Objects become one file, compressed or not; one with pickles only in part, and one in HDF5 like the others."""
    for case in (CASE, "weights_compressed", "tied", "optimizer"):
        fs = fsspec.filesystem("s3")
        url = upload(fs, case, f"{held}/{case}.mdl")
        keys = ["--keys", *(key for key in expected(case))] if readable(case) else []
        assert run("convert", url, f"{tmp_path}/{case}.mdl", *keys) == DONE
        assert same(load(tmp_path / f"{case}.mdl"), expected(case))
    assert run("convert", f"s3://{held}/tied.mdl", f"{tmp_path}/no.mdl") == FAILED
    assert "pickles" in capsys.readouterr().err
    assert not (tmp_path / "no.mdl").exists()
    assert run("convert", str(DATA / CASE / "local.mdl"), f"{tmp_path}/hdf5.mdl") == DONE
    assert same(load(tmp_path / "hdf5.mdl"), expected(CASE))


def test_one_file_to_cerebras(held: str, tmp_path: Path, fs: CSXFileSystem) -> None:
    """A file becomes objects on S3, and nowhere else; a file is no more replaced by them than they are by it."""
    save(STATE, tmp_path / "model.mdl")
    local, url = str(tmp_path / "model.mdl"), f"s3://{held}/out/model.mdl"
    assert run("convert", local, f"s3://{held}/out/", "--format", "cerebras") == DONE
    assert fs.exists(f"{held}/out/model.mdl/__METADATA__")
    assert same(load(url), STATE)
    assert run("convert", local, url, "--force") == FAILED
    assert not fs.isfile(f"{held}/out/model.mdl")
    assert run("convert", local, f"{tmp_path}/x.mdl", "--format", "cerebras") == FAILED
    assert run("convert", local, url, "--force", "--format", "cerebras", "--keys", "step") == DONE
    assert load(url) == {"step": 7}
