"""cszoo checkpoint gc deletes the leftovers of killed processes, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import fsspec
import pytest
import torch
from commands import DONE, FAILED, USAGE, cszoo, failure, running
from forked import python
from roots import ODD, fill, left

from fsspec_csx import copy, distributed, save
from fsspec_csx.cli import main
from fsspec_csx.errors import AccessDeniedError, BucketNotFoundError, EndpointError, RejectedCredentialsError
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage import s3
from fsspec_csx.manage.gc import Leftover, clear, leftovers
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

NOW = timedelta(0)
LEFT = (".x.mdl.0123456789abcdef.tmp", ".0123456789abcdef.tmp", "x.mdl.0123456789abcdef.tmp")


def run(*arguments: str) -> int:
    """The exit status of the verb, in this process."""
    return main(["checkpoint", "gc", *arguments])


def begin(fs: CSXFileSystem, path: str, parts: int = 1) -> str:
    """The id of a new multipart upload, with so many parts of 100 bytes."""
    bucket, key, _ = fs.split_path(path)
    name: str = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)["UploadId"]
    for number in range(1, parts + 1):
        fs.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=name, PartNumber=number, Body=b"x" * 100)
    return name


def unfinished(fs: CSXFileSystem, bucket: str) -> list[str]:
    """The keys of the uploads in a bucket."""
    return sorted(each["Key"] for each in fs.list_multipart_uploads(bucket))


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of notes about uploads."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "fsspec_csx" / "uploads"
    folder.mkdir(parents=True)
    return folder


def age(path: Path, days: float) -> None:
    """Let a file have been written so many days ago."""
    then = time.time() - days * 86400
    os.utime(path, (then, then))


@pytest.mark.slow
def test_killed_writer(
    environment: LocalS3, bucket: str, fs: CSXFileSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a process left that was killed in the midst of a write is found and cleared; the old object stays."""
    fs.pipe_file(f"{bucket}/run/x.mdl", b"old")
    code = f"""
import fsspec, time
with fsspec.open("s3://{bucket}/run/x.mdl", "wb") as file:
    for _ in range(40):
        file.write(b"x" * 2**20)
    print("written", flush=True)
    time.sleep(60)
"""
    with running([*python(), "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"written\n"
        deadline = time.monotonic() + 60
        while not sum(each.size or 0 for each in s3.unfinished_uploads(fs, bucket)) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=100)
    assert run(f"s3://{bucket}/run", "--older-than", "0s", "--json", "--dry-run") == DONE
    (report,) = json.loads(capsys.readouterr().out)["leftovers"]
    assert (report["kind"], report["path"]) == ("upload", f"s3://{bucket}/run/x.mdl")
    assert report["size"] >= 5 * 2**20  # the smallest part of S3
    assert unfinished(fs, bucket) == ["run/x.mdl"]
    assert run(f"s3://{bucket}/run", "--older-than", "0s", "--yes") == DONE
    assert unfinished(fs, bucket) == []
    assert fs.cat_file(f"{bucket}/run/x.mdl") == b"old"


def test_only_below_the_root(environment: LocalS3, bucket: str, fs: CSXFileSystem) -> None:
    """Uploads whose keys only begin like the root are others'; a bucket has them all."""
    inside = ["run", "run/x.mdl", "run/deep/x.mdl", *(f"run/{name}" for name in ODD)]
    outside = ["run0", "run0/x.mdl", "ru", "run.mdl", "other/run/x.mdl"]
    for key in (*inside, *outside):
        begin(fs, f"{bucket}/{key}")
    fill(f"s3://{bucket}", "run/x.mdl", f"run0/{LEFT[0]}", "run0/x.mdl", "run/ckpt_1/__0_0.distcp")
    objects = left(f"s3://{bucket}")
    for root in (f"s3://{bucket}/run", f"s3://{bucket}/run/"):
        found = leftovers(root, older_than=NOW)
        assert sorted(each.path for each in found) == sorted(f"s3://{bucket}/{key}" for key in inside)
    in_bucket = leftovers(f"s3://{bucket}", older_than=NOW)
    assert [each.kind for each in in_bucket] == ["upload"] * len([*inside, *outside]) + ["file"]
    assert [each.path for each in leftovers(f"s3://{bucket}/run/x.mdl", older_than=NOW)] == [f"s3://{bucket}/run/x.mdl"]
    assert clear(found) == {}
    assert unfinished(fs, bucket) == sorted(outside)
    assert left(f"s3://{bucket}") == objects
    assert clear(found) == {}  # which were cleared already


def test_pages(environment: LocalS3, bucket: str, fs: CSXFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many uploads come in pages, of one key and of many."""
    names = {begin(fs, f"{bucket}/run/{number % 3}.mdl", parts=number % 2) for number in range(9)}
    monkeypatch.setattr(s3, "PAGE", 2)
    found = s3.unfinished_uploads(fs, bucket)
    assert {each.id for each in found} == names
    assert sorted({each.size for each in found}) == [0, 100]


def test_size(environment: LocalS3, bucket: str, fs: CSXFileSystem) -> None:
    """The size of an upload is that of all its parts."""
    name = begin(fs, f"{bucket}/x.mdl", parts=3)
    (found,) = leftovers(f"s3://{bucket}", older_than=NOW)
    assert (found.upload_id, found.size) == (name, 300)


@pytest.mark.slow
def test_age_of_uploads(environment: LocalS3, bucket: str, fs: CSXFileSystem) -> None:
    """An upload to which a part came lately is under way, whenever it was begun."""
    begin(fs, f"{bucket}/idle.mdl", parts=0)
    begun = begin(fs, f"{bucket}/busy.mdl")
    time.sleep(2.5)  # the server reports whole seconds
    fs.call_s3("upload_part", Bucket=bucket, Key="busy.mdl", UploadId=begun, PartNumber=2, Body=b"x" * 100)
    busy, idle = leftovers(f"s3://{bucket}", older_than=NOW)
    assert (busy.upload_id, busy.size) == (begun, 200)
    found = leftovers(f"s3://{bucket}", older_than=datetime.now(timezone.utc) - idle.modified)
    assert [each.path for each in found] == [f"s3://{bucket}/idle.mdl"]
    assert leftovers(f"s3://{bucket}") == []


def test_files(tmp_path: Path, states: Path) -> None:
    """Temporary files of every writer are cleared, however deep, and nothing that is young or has another name."""
    root = tmp_path / "run"
    fill(str(root), *LEFT, *(f"a/b/{name}" for name in LEFT), *ODD, ".x.tmp", "x.mdl", "y.0123456789abcdeg.tmp")
    for path in root.rglob("*"):
        age(path, 2)
    fill(str(root), "young.mdl.0123456789abcdef.tmp")
    found = leftovers(root)
    assert sorted(each.path for each in found) == sorted(f"{root}/{at}{name}" for at in ("", "a/b/") for name in LEFT)
    assert {(each.kind, each.size) for each in found} == {("file", 4)}
    assert clear(found) == {}
    kept = [*ODD, ".x.tmp", "x.mdl", "y.0123456789abcdeg.tmp", "young.mdl.0123456789abcdef.tmp"]
    assert left(str(root)) == sorted(kept)


def test_other_filesystems(tmp_path: Path, states: Path) -> None:
    """The same on any filesystem."""
    root = f"memory://{tmp_path.name}/gc"
    fill(root, LEFT[0], f"a/{LEFT[1]}", "a/x.mdl")
    assert leftovers(root) == []
    found = leftovers(root, older_than=NOW)
    assert sorted(each.path for each in found) == [f"{root}/{LEFT[0]}", f"{root}/a/{LEFT[1]}"]
    assert clear(found) == {}
    assert left(root) == ["a/x.mdl"]


def test_shards(tmp_path: Path, states: Path) -> None:
    """A folder of parts alone, long not written to, is left over; with anything else in it, it is not."""
    root = tmp_path / "run"
    names = ["1/__0_0.distcp", "1/__1_0.distcp", "2/__0_0.distcp", "2/.metadata", "3/__0_0.distcp", "3/x.txt"]
    fill(str(root), *names, "4/__0_0.distcp", "4/__1_0.distcp")
    for path in root.rglob("*"):
        age(path, 2)
    age(root / "4" / "__1_0.distcp", 0)
    (found,) = leftovers(root)
    assert (found.kind, found.path, found.size) == ("shards", f"{root}/1", 8)
    assert clear([found]) == {}
    assert not (root / "1").exists()
    assert len(left(str(root))) == 6
    with_parts_on_top = leftovers(root / "4", older_than=NOW)
    assert with_parts_on_top == []


def test_shards_with_a_manifest_that_cannot_be_followed(tmp_path: Path, states: Path) -> None:
    """A link may lead to a disk that is away for now: then its shards stay, also those in folders with prefixes."""
    for number, target in enumerate(("nowhere", ".metadata")):
        distributed.save({"x": torch.ones(3)}, tmp_path / f"dcp{number}")
        distributed.save({"x": torch.ones(3)}, tmp_path / f"spread{number}", prefix_count=2)
        for folder in (tmp_path / f"dcp{number}", tmp_path / f"spread{number}"):
            (folder / ".metadata").unlink()
            (folder / ".metadata").symlink_to(target)
    save({"x": torch.ones(3)}, tmp_path / "hf", format="huggingface")
    index = tmp_path / "hf" / "model.safetensors.index.json"
    index.unlink()
    assert [each.path for each in leftovers(tmp_path, older_than=NOW)] == [str(tmp_path / "hf")]
    index.symlink_to("nowhere")
    (tmp_path / "dcp0" / "latest").symlink_to("nowhere")
    assert leftovers(tmp_path, older_than=NOW) == []
    distributed.save({"x": torch.ones(3)}, tmp_path / "other")
    held = left(str(tmp_path))
    for name in ("dcp0", "spread1", "hf"):
        with pytest.raises(FileExistsError):
            copy(tmp_path / "other", tmp_path / name)
    assert left(str(tmp_path)) == held
    (tmp_path / "dcp0" / ".metadata").unlink()
    assert [each.path for each in leftovers(tmp_path, older_than=NOW)] == [str(tmp_path / "dcp0")]


def test_shards_on_s3(environment: LocalS3, bucket: str, states: Path) -> None:
    """On S3 only parts that this package has named are left over; others may be of somebody who writes just now."""
    own = "__0_0.0123456789abcdef.distcp"
    fill(f"s3://{bucket}", f"1/{own}", "2/__0_0.distcp", f"3/{own}", "3/__1_0.distcp", f"4/{own}", "4/x.txt", own)
    fill(f"s3://{bucket}", f"run/.writable.{16 * 'a'}.tmp")
    found = leftovers(f"s3://{bucket}", older_than=NOW)
    assert [(each.kind, each.path) for each in found] == [
        ("shards", f"s3://{bucket}/1"),
        ("file", f"s3://{bucket}/run/.writable.{16 * 'a'}.tmp"),
    ]
    assert clear(found) == {}
    assert len(left(f"s3://{bucket}")) == 6


def test_shards_that_no_manifest_names(root: str, states: Path) -> None:
    """Parts of a killed save go, and what is in the checkpoint that lies there stays; so does all of a damaged one."""
    for name in ("run/1", "run/2"):
        distributed.save({"x": torch.ones(3)}, f"{root}/{name}")
    whole = left(root)
    fill(root, "run/1/__0_0.0123456789abcdef.distcp", "run/2/__0_0.0123456789abcdef.distcp", "run/1/notes.txt")
    fill(root, "run/2/.metadata", data=b"damaged")
    assert leftovers(root) == []
    (found,) = leftovers(root, older_than=NOW)
    assert (found.kind, found.path, found.size) == ("shards", f"{root}/run/1", 4)
    assert clear([found]) == {}
    assert left(root) == sorted([*whole, "run/1/notes.txt", "run/2/__0_0.0123456789abcdef.distcp"])


def test_states(environment: LocalS3, bucket: str, states: Path) -> None:
    """Old notes about uploads to below the root go, and none about others, or without a target."""
    fs = fsspec.filesystem("s3")
    fs.connect()
    endpoint = fs._endpoint
    targets = {"old": f"{bucket}/run/x.mdl", "young": f"{bucket}/run/x.mdl", "other": f"{bucket}0/run/x.mdl"}
    for name, target in targets.items():
        (states / f"{name}.json").write_text(json.dumps({"upload": "x", "part": 1, "target": f"{endpoint} {target}"}))
    (states / "elsewhere.json").write_text(json.dumps({"target": f"https://elsewhere {bucket}/run/x.mdl"}))
    for name, text in {"none": "", "unknown": "{}", "damaged": "[" * 10**5, "number": '{"target": 1}'}.items():
        (states / f"{name}.json").write_text(text)
    before = {path.name for path in states.iterdir()}
    for path in states.iterdir():
        if path.name != "young.json":
            age(path, 2)
    assert leftovers(f"s3://{bucket}/ru") == []
    (found,) = leftovers(f"s3://{bucket}")
    assert (found.kind, found.path) == ("state", str(states / "old.json"))
    assert clear([found]) == {}
    assert {path.name for path in states.iterdir()} == before - {"old.json"}


def test_output(tmp_path: Path, states: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What would be deleted is shown, and is deleted with --yes."""
    root = tmp_path / "run"
    fill(str(root), LEFT[0], "x.mdl")
    age(root / LEFT[0], 3)
    assert run(str(root)) == FAILED
    assert "--dry-run" in capsys.readouterr().err
    assert run(str(root), "--dry-run") == DONE
    line, report = capsys.readouterr().out.splitlines()
    assert line == f"file  3d  4 B  {root}/{LEFT[0]}"
    assert report == "1 leftover, 4 B, would be deleted: pass --yes to delete."
    assert run(str(root), "--json", "--dry-run") == DONE
    report = json.loads(capsys.readouterr().out)
    assert report["leftovers"][0].pop("modified").startswith("20")
    leftover = {"kind": "file", "path": f"{root}/{LEFT[0]}", "size": 4, "upload_id": None}
    assert report == {"dry_run": True, "leftovers": [leftover], "failed": {}}
    assert run(str(root), "--older-than", "4d", "--yes") == DONE
    assert capsys.readouterr().out == "There is nothing to delete.\n"
    assert run(str(root), "--older-than", "71h", "--yes", "--quiet") == DONE
    assert capsys.readouterr().out == f"{line}\n"
    assert left(str(root)) == ["x.mdl"]


@pytest.mark.parametrize("text", ["", "1", "d", "-1d", "1.5d", "1d1h", "1y", "٣d", "999999999w", "999999999d"])
def test_usage(text: str, tmp_path: Path) -> None:
    """What is no age is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        run(str(tmp_path), f"--older-than={text}")
    assert ended.value.code == USAGE


def test_no_root(root: str) -> None:
    """A root that is missing is an error, but on S3, where an upload makes none."""
    if root.startswith("s3://"):
        fill(root, "x.mdl")
        assert leftovers(f"{root}/missing") == []
        return
    with pytest.raises(FileNotFoundError, match=r"no folder .*missing"):
        leftovers(f"{root}/missing")


@pytest.mark.slow
def test_refusals(
    server: LocalS3, bucket: str, fs: CSXFileSystem, aws_files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who may only read is shown what is left, and clears nothing; other causes are reported as what they are."""
    for number in (1, 2):
        begin(fs, f"{bucket}/{number}.mdl")
    store = server.storage_options("reader")
    failed = clear(leftovers(f"s3://{bucket}", older_than=NOW, storage_options=store))
    assert [*failed] == [f"s3://{bucket}/1.mdl", f"s3://{bucket}/2.mdl"]
    assert all(isinstance(error, AccessDeniedError) for error in failed.values())
    with pytest.raises(RejectedCredentialsError):
        leftovers(f"s3://{bucket}", storage_options={**store, "secret": "wrong"})
    with pytest.raises(BucketNotFoundError):
        leftovers(f"s3://{bucket}-missing", storage_options=store)
    with pytest.raises(EndpointError):
        leftovers(f"s3://{bucket}", storage_options={**store, "endpoint_url": "http://127.0.0.1:9"})
    (aws_files / "credentials").write_text(
        f"[read]\naws_access_key_id = {store['key']}\naws_secret_access_key = {store['secret']}\n"
    )
    asked = [f"s3://{bucket}", "-p", "read", "--endpoint-url", server.endpoint_url, "--older-than", "0m"]
    assert run(*asked, "--dry-run") == DONE
    capsys.readouterr()
    assert run(*asked, "--yes") == FAILED
    cause, remedy = capsys.readouterr().err.splitlines()
    assert cause.startswith(f"cszoo: 2 of 2 leftovers are left (s3://{bucket}/1.mdl, s3://{bucket}/2.mdl): ")
    assert remedy.startswith("Ask for the right")
    assert len(unfinished(fs, bucket)) == 2


def test_plain_s3fs(server: LocalS3, bucket: str, fs: CSXFileSystem) -> None:
    """It is all the same where plain s3fs is behind s3://."""
    import s3fs

    begin(fs, f"{bucket}/run/x.mdl")
    fill(f"s3://{bucket}", "run/y.mdl", "run/z.mdl", **server.storage_options())
    plain = s3fs.S3FileSystem(**server.storage_options())
    (found,) = s3.unfinished_uploads(plain, f"{bucket}/run")
    leftover = Leftover("upload", found.key, found.size, found.modified, found.id, plain, found)
    assert clear([leftover, leftover]) == {}
    assert manage_delete.remove(plain, [f"{bucket}/run/y.mdl", f"{bucket}/run/z.mdl", f"{bucket}/run/none"]) == {}
    assert (unfinished(fs, bucket), left(f"s3://{bucket}", **server.storage_options())) == ([], [])


@pytest.mark.slow
def test_command(environment: LocalS3, bucket: str, fs: CSXFileSystem) -> None:
    """The command in a process."""
    begin(fs, f"{bucket}/run/x.mdl")
    done = cszoo("gc", f"s3://{bucket}/run", "--older-than", "0s", "--yes")
    assert (done.returncode, done.stderr) == (DONE, "")
    assert done.stdout.splitlines()[-1] == "Deleted 1 leftover, 100 B."
    assert unfinished(fs, bucket) == []
    cause, _ = failure(cszoo("gc", f"s3://{bucket}-missing"))
    assert f"{bucket}-missing" in cause
