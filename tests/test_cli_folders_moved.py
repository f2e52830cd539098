"""list, copy, move, delete and convert on checkpoints that are folders: Cerebras ones, and sharded ones."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
from cerebras import changed, headers, objects, upload
from commands import DONE, FAILED, cszoo, failure
from proxy import fault_proxy
from roots import fill, left

from fsspec_csx import copy, load, move
from fsspec_csx.cli import main
from fsspec_csx.errors import CheckpointPathError
from fsspec_csx.filesystem import CSXFileSystem
from fsspec_csx.formats import cerebras_folder
from fsspec_csx.manage import deleting
from fsspec_csx.manage.listing import checkpoints, latest
from fsspec_csx.testing import LocalS3

CASE = "weights_plain"
KEYS = sorted(objects(CASE))


def run(*arguments: str) -> int:
    """The exit status of a verb, in this process."""
    return main(["checkpoint", *arguments])


def told(fs: CSXFileSystem, path: str) -> dict[str, dict[str, str]]:
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
    assert latest(f"s3://{held}", recursive=recursive) == found


def test_listed_locally(tmp_path: Path) -> None:
    """Metadata alone is a checkpoint, of values; a damaged one is none, nor one whose end only seems to be there."""
    changed(tmp_path / "whole_1.mdl", CASE)
    changed(tmp_path / "denied_2.mdl", CASE, __SUCCESS__=None)
    (tmp_path / "damaged_3.mdl").mkdir()
    (tmp_path / "damaged_3.mdl" / "__METADATA__").write_bytes(b"nothing")
    (tmp_path / "values_4.mdl").mkdir()
    changed(tmp_path / "values_4.mdl", "empty_dict")
    for each in (tmp_path / "values_4.mdl").iterdir():
        if each.name != "__METADATA__":
            each.unlink()
    assert [found.step for found in checkpoints(tmp_path)] == [1, 4]


# -- copy and move -----------------------------------------------------------------------------------------------------


def test_copied_and_moved(held: str, fs: CSXFileSystem) -> None:
    """All objects and their user metadata come along, and nothing of a neighbour; the copy loads."""
    assert copy(f"s3://{held}/checkpoint_5.mdl", f"s3://{held}/copy/") == f"s3://{held}/copy/checkpoint_5.mdl"
    assert left(f"s3://{held}/copy") == [f"checkpoint_5.mdl/{key}" for key in KEYS]
    assert told(fs, f"{held}/copy/checkpoint_5.mdl") == told(fs, f"{held}/checkpoint_5.mdl")
    assert any(told(fs, f"{held}/checkpoint_5.mdl").values())
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
    assert told(fs, f"{held}/x.mdl") == headers(CASE)


def test_copied_to_another_server(held: str, fs: CSXFileSystem, server: LocalS3) -> None:
    """Through this machine's memory the user metadata comes along too."""
    with fault_proxy(server.endpoint_url) as proxy:
        there = {**server.storage_options(), "endpoint_url": proxy.url}
        copy(f"s3://{held}/checkpoint_5.mdl", f"s3://{held}/there.mdl", target_options=there)
    assert told(fs, f"{held}/there.mdl") == headers(CASE)


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
    """Exactly its objects go, those in its folders too; a folder without metadata is no checkpoint."""
    fs.pipe_file(f"{held}/checkpoint_5.mdl/deep/er", b"part")
    fill(f"s3://{held}/plain.mdl", "weight")
    assert run("delete", f"s3://{held}/checkpoint_5.mdl", "--yes", "--json") == DONE
    (gone,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert gone["files"] == len(KEYS) + 1
    assert left(f"s3://{held}") == ["checkpoint_5.mdl0", "plain.mdl/weight"]
    assert run("delete", f"s3://{held}/plain.mdl", "--yes") == FAILED


def test_metadata_is_deleted_first(held: str, fs: CSXFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else goes, what makes it a checkpoint does."""
    seen = []
    remove = deleting.remove

    def recorded(at: object, files: list[str]) -> dict[str, Exception]:
        seen.append([file.rpartition("/")[2] for file in files])
        return remove(at, files)

    monkeypatch.setattr(deleting, "remove", recorded)
    assert run("delete", f"s3://{held}/checkpoint_5.mdl", "--yes") == DONE
    assert seen[0] == ["__METADATA__"]
    assert not cerebras_folder.is_cerebras(fs, f"{held}/checkpoint_5.mdl")


def test_in_processes(held: str, tmp_path: Path) -> None:
    """The commands as they are typed."""
    listed = cszoo("list", f"s3://{held}", "--latest")
    assert (listed.returncode, listed.stdout.split()[-1:]) == (DONE, [f"s3://{held}/checkpoint_5.mdl"])
    refused, remedy = failure(cszoo("copy", f"s3://{held}/checkpoint_5.mdl", f"{tmp_path}/"))
    assert "user metadata" in refused
    assert "convert" in remedy
