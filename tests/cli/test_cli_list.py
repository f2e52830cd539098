"""cszoo checkpoint list: what counts as a checkpoint, in which order, and what is shown of each."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import fsspec
import pytest
from commands import DONE, FAILED, cszoo, failure
from conftest import recorded_requests
from roots import ODD, fill, manifest

from fsspec_csx import load, save
from fsspec_csx.cli import main
from fsspec_csx.errors import BucketNotFoundError, CheckpointPathError, EndpointError, RejectedCredentialsError
from fsspec_csx.manage import s3
from fsspec_csx.manage.list import checkpoints, latest_of
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3


def paths(root: str, **options: bool) -> list[str]:
    """What is found, by its path from the root on."""
    return [found.path.removeprefix(f"{root}/") for found in checkpoints(root, **options)]


def test_order(root: str) -> None:
    """The newest is last: steps are numbers, and a moment in a name is later than none, whenever it was written."""
    fill(root, "checkpoint_100_20260102_120000.mdl", "checkpoint_100_20260101_120000.mdl", "checkpoint_1000.mdl")
    fill(root, "checkpoint_100.mdl", "checkpoint_9.mdl", "epoch=1-step=500.ckpt", "model.mdl", "notes.txt")
    assert paths(root) == [
        "model.mdl",
        "checkpoint_9.mdl",
        "checkpoint_100.mdl",
        "checkpoint_100_20260101_120000.mdl",
        "checkpoint_100_20260102_120000.mdl",
        "epoch=1-step=500.ckpt",
        "checkpoint_1000.mdl",
    ]


def test_without_step_by_time(tmp_path: Path) -> None:
    """Names without a step come in the order in which the files were written."""
    for name, time in (("c.mdl", 1), ("a.mdl", 3), ("b.mdl", 2)):
        (tmp_path / name).write_bytes(b"data")
        os.utime(tmp_path / name, (time, time))
    assert paths(str(tmp_path)) == ["c.mdl", "b.mdl", "a.mdl"]


def test_what_is_reported(root: str) -> None:
    """Step, size and time are those of the file, and the path is one that load takes."""
    save([1, 2, 3], f"{root}/checkpoint_5.mdl")
    (found,) = checkpoints(f"{root}/")
    assert load(found.path) == [1, 2, 3]
    fs, path = fsspec.url_to_fs(f"{root}/checkpoint_5.mdl")
    assert (found.step, found.size, found.files, found.sharded) == (5, fs.size(path), 1, False)
    assert found.modified is not None
    assert abs((datetime.now(found.modified.tzinfo) - found.modified).total_seconds()) < 60


def test_sharded(root: str) -> None:
    """A folder with a manifest that load reads is one checkpoint, of the size of all its files; others are none."""
    fill(root, "checkpoint_1/.metadata", "checkpoint_1/__0_0.distcp", "checkpoint_1/__1_0.distcp", data=b"123")
    fill(root, "checkpoint_2/model.safetensors.index.json", "checkpoint_2/model-00001-of-00001.safetensors")
    fill(root, "checkpoint_3/__0_0.distcp", "checkpoint_4/model-00001-of-00002.safetensors", "checkpoint_5/.metadata")
    fill(root, "checkpoint_6/__0_0.distcp", "folder/checkpoint_7.mdl")
    fill(root, "checkpoint_6/.metadata", data=b"")
    found = checkpoints(root)
    assert [each.path for each in found] == [f"{root}/checkpoint_1", f"{root}/checkpoint_2"]
    assert [(each.step, each.size, each.files, each.sharded) for each in found] == [(1, 9, 3, True), (2, 8, 2, True)]
    assert found[0].modified is not None


def test_what_is_no_checkpoint(root: str) -> None:
    """A file that is not whole yet, or has no bytes, is no checkpoint."""
    fill(
        root, ".checkpoint_1.mdl.0123456789abcdef.tmp", "checkpoint_2.mdl.0123456789abcdef.tmp", "checkpoint_3.mdl.txt"
    )
    fill(root, "checkpoint_4.mdl", data=b"")
    assert checkpoints(root) == []
    assert latest_of(checkpoints(root)) is None


def test_recursive(root: str) -> None:
    """Below the folders of a root as well, and the files of a sharded checkpoint are not reported one by one."""
    fill(root, "checkpoint_1.mdl", "a/checkpoint_2.mdl", "a/b/checkpoint_3.mdl", "a/b/.hidden/checkpoint_4.mdl")
    fill(root, "a/checkpoint_5/.metadata", "a/checkpoint_5/__0_0.distcp", "a/checkpoint_5/meta.pt")
    assert paths(root) == ["checkpoint_1.mdl"]
    assert paths(root, recursive=True) == [
        "checkpoint_1.mdl",
        "a/checkpoint_2.mdl",
        "a/b/checkpoint_3.mdl",
        "a/b/.hidden/checkpoint_4.mdl",
        "a/checkpoint_5",
    ]


def test_odd_names(root: str) -> None:
    """Every character of a name is part of the name, of the root too."""
    fill(f"{root}/[r]*?", *ODD)
    fill(f"{root}/rr", "x.mdl")
    assert sorted(paths(f"{root}/[r]*?")) == sorted(ODD)
    assert sorted(paths(root, recursive=True)) == sorted([*(f"[r]*?/{name}" for name in ODD), "rr/x.mdl"])


def test_neighbours(root: str) -> None:
    """A root is a folder, and not the beginning of a name."""
    fill(root, "run/checkpoint_1.mdl", "run0/checkpoint_2.mdl", "run.mdl")
    for recursive in (False, True):
        assert paths(f"{root}/run", recursive=recursive) == ["checkpoint_1.mdl"]


def test_what_others_wrote(root: str) -> None:
    """A listing of before is not trusted."""
    fill(root, "checkpoint_1.mdl", "folder/checkpoint_3.mdl")
    assert paths(root, recursive=True) == ["checkpoint_1.mdl", "folder/checkpoint_3.mdl"]
    other = root
    if root.startswith("s3://"):
        fs = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        fs.pipe_file(f"{root}/checkpoint_2.mdl", b"data")
        fs.pipe_file(f"{root}/folder/.metadata", b"data")
    else:
        fill(other, "checkpoint_2.mdl", "folder/.metadata")
    assert paths(root) == ["folder", "checkpoint_1.mdl", "checkpoint_2.mdl"]


def test_no_root(root: str) -> None:
    """A root that is missing, and one that is a file, are errors that name it."""
    fill(root, "x.mdl")
    for recursive in (False, True):
        with pytest.raises(FileNotFoundError, match=r"There is no .*missing"):
            checkpoints(f"{root}/missing", recursive=recursive)
        with pytest.raises(NotADirectoryError, match=r"x\.mdl"):
            checkpoints(f"{root}/x.mdl", recursive=recursive)


def test_emptied_root(bucket: str, environment: LocalS3) -> None:
    """A root whose files were deleted has none, where the server keeps the folder."""
    fill(f"s3://{bucket}", "run/checkpoint_1.mdl")
    fsspec.filesystem("s3").rm_file(f"{bucket}/run/checkpoint_1.mdl")
    for recursive in (False, True):
        assert checkpoints(f"s3://{bucket}/run", recursive=recursive) == []


@pytest.mark.parametrize("path", ["", "s3://", "s3:/bucket", "nothing://x"])
def test_what_is_no_root(path: str) -> None:
    """A path that cannot name a folder is refused before any request; the error has the path as it was given."""
    with pytest.raises(CheckpointPathError, match=f"'{path}'" if path else "empty") as caught:
        checkpoints(path)
    assert "/checkpoint'" not in caught.value.reason


def test_bucket(bucket: str, environment: LocalS3) -> None:
    """A bucket is a root, an empty one has no checkpoints, and a missing one is an error."""
    assert paths(f"s3://{bucket}") == []
    fill(f"s3://{bucket}", "checkpoint_1.mdl", "run/checkpoint_2.mdl")
    assert [found.path for found in checkpoints(f"s3://{bucket}/")] == [f"s3://{bucket}/checkpoint_1.mdl"]
    with pytest.raises(BucketNotFoundError):
        checkpoints(f"s3://{bucket}-missing")


@pytest.mark.parametrize("form", ["file://{}", "simplecache::file://{}", "dir://run::file://{}/..", "{}/../run/"])
def test_chained(form: str, tmp_path: Path) -> None:
    """Whatever the form of a URL, the paths found are of that form."""
    (tmp_path / "run").mkdir()
    root = form.format(tmp_path / "run")
    save([1], str(tmp_path / "run" / "checkpoint_1.mdl"))
    found = latest_of(checkpoints(root))
    assert found is not None
    assert load(found.path) == [1]


def test_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path from the working directory on is one in what is found."""
    monkeypatch.chdir(tmp_path)
    fill(str(tmp_path), "run/checkpoint_1.mdl")
    assert [found.path for found in checkpoints("run")] == ["run/checkpoint_1.mdl"]
    assert [found.path for found in checkpoints(".", recursive=True)] == ["./run/checkpoint_1.mdl"]


def test_links_and_locked_folders(tmp_path: Path) -> None:
    """A link to nothing is no checkpoint, and one that leads back is not followed forever."""
    fill(str(tmp_path), "run/checkpoint_1.mdl")
    (tmp_path / "run" / "checkpoint_2.mdl").symlink_to("nowhere")
    (tmp_path / "run" / "checkpoint_3.mdl").symlink_to("checkpoint_3.mdl")
    (tmp_path / "run" / "back").symlink_to(".")
    for recursive in (False, True):
        assert paths(str(tmp_path / "run"), recursive=recursive) == ["checkpoint_1.mdl"]


@pytest.mark.slow
def test_folders_side_by_side(bucket: str, environment: LocalS3, fs: CSXFileSystem) -> None:
    """Many sharded checkpoints take a request each, and below a root all take one for a thousand files."""
    shards = [f"{bucket}/run/checkpoint_{n}/{name}" for n in range(100) for name in (".metadata", "__0_0.distcp")]
    fs.pipe(dict.fromkeys(shards, b"data"))
    with recorded_requests() as requests:
        found = checkpoints(f"s3://{bucket}/run")
    assert [each.step for each in found] == [*range(100)]
    assert {*requests} == {"ListObjectsV2"}
    assert len(requests) == 101
    with recorded_requests() as requests:
        assert checkpoints(f"s3://{bucket}/run", recursive=True) == found
    assert requests == ["ListObjectsV2"]


def test_folders_of_many_files(
    bucket: str, environment: LocalS3, fs: CSXFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of other files is not listed to its end, a checkpoint of many files is."""
    fs.pipe({f"{bucket}/data/{number}.jpg": b"data" for number in range(20)})
    fs.pipe({f"{bucket}/checkpoint_1/__{number}_0.distcp": b"data" for number in range(20)})
    fs.pipe_file(f"{bucket}/checkpoint_1/.metadata", b"data")
    monkeypatch.setattr(s3, "PAGE", 5)
    with recorded_requests() as requests:
        (found,) = checkpoints(f"s3://{bucket}")
    assert (found.path, found.files, found.size) == (f"s3://{bucket}/checkpoint_1", 21, 84)
    # The root, the first page of each folder, a look for the metadata that may follow it, and the whole of one.
    assert requests == ["ListObjectsV2"] * 5


def test_output(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """For people a line each, as JSON all that is known, and the newest is its path alone."""
    fill(root, "checkpoint_1.mdl", "checkpoint_2/x.distcp", "model.mdl")
    fill(root, "checkpoint_2/.metadata", data=manifest("x.distcp"))
    assert main(["checkpoint", "list", root]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["-", "1", "2"]
    assert lines[1].endswith(f"4 B  {root}/checkpoint_1.mdl")
    assert lines[2].endswith(f"B  {root}/checkpoint_2 (2 files)")
    assert main(["checkpoint", "list", root, "--json"]) == DONE
    report = json.loads(capsys.readouterr().out)
    assert [each.pop("modified")[:2] for each in report] == ["20"] * 3
    assert report[1:] == [
        {"path": f"{root}/checkpoint_1.mdl", "step": 1, "size": 4, "files": 1, "sharded": False},
        {"path": f"{root}/checkpoint_2", "step": 2, "size": 4 + len(manifest("x.distcp")), "files": 2, "sharded": True},
    ]
    assert main(["checkpoint", "list", root, "--latest", "--quiet"]) == DONE
    assert capsys.readouterr().out == f"{root}/checkpoint_2\n"
    assert main(["checkpoint", "list", root, "--latest", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["path"] == f"{root}/checkpoint_2"


def test_unprintable_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name cannot end a line, nor speak to the terminal."""
    fill(str(tmp_path), "run/a\nb\x1b[1m.mdl")
    assert main(["checkpoint", "list", str(tmp_path / "run")]) == DONE
    assert capsys.readouterr().out.endswith("/run/a\\nb\\x1b[1m.mdl\n")


def test_none(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty root prints nothing, and has no newest checkpoint."""
    fill(root, "notes.txt")
    assert main(["checkpoint", "list", root]) == DONE
    assert capsys.readouterr().out == ""
    assert main(["checkpoint", "list", root, "--json"]) == DONE
    assert capsys.readouterr().out == "[]\n"
    assert main(["checkpoint", "list", root, "--latest"]) == FAILED
    assert f"There is no checkpoint under {root}." in capsys.readouterr().err


@pytest.mark.slow
def test_command(environment: LocalS3, bucket: str) -> None:
    """The command in a process: what it prints, and what a missing root and bucket lead to."""
    fill(f"s3://{bucket}", "run/checkpoint_1.mdl", "run/checkpoint_10.mdl")
    done = cszoo("list", f"s3://{bucket}/run", "--latest")
    assert (done.returncode, done.stdout, done.stderr) == (DONE, f"s3://{bucket}/run/checkpoint_10.mdl\n", "")
    cause, remedy = failure(cszoo("list", f"s3://{bucket}/missing"))
    assert f"s3://{bucket}/missing" in cause
    assert remedy == "Check its name."


@pytest.mark.slow
def test_refusals(server: LocalS3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may only read may list; a wrong secret and an endpoint that is down are reported as such."""
    fill(f"s3://{bucket}", "checkpoint_1.mdl", **server.storage_options())
    reader = server.storage_options("reader")
    assert len(checkpoints(f"s3://{bucket}", storage_options=reader)) == 1
    with pytest.raises(RejectedCredentialsError):
        checkpoints(f"s3://{bucket}", storage_options={**reader, "secret": "wrong"})
    with pytest.raises(EndpointError):
        checkpoints(f"s3://{bucket}", storage_options={**reader, "endpoint_url": "http://127.0.0.1:9"})
