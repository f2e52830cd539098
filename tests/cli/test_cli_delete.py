"""cszoo checkpoint delete deletes the named checkpoints, and nothing else."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
from commands import DONE, FAILED, cszoo, failure
from conftest import recorded_requests
from roots import ODD, fill, left

from fsspec_csx.cli import main
from fsspec_csx.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    CheckpointPathError,
    EndpointError,
    RejectedCredentialsError,
)
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage.delete import delete, targets
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

SHARDED = ("ckpt_1/.metadata", "ckpt_1/__0_0.distcp", "ckpt_1/__1_0.distcp", "ckpt_1/notes.txt")


def run(*arguments: str) -> int:
    """The exit status of the verb, in this process."""
    return main(["checkpoint", "delete", *arguments])


def test_only_that_one(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint whose name begins another's, or continues it, is another one."""
    names = ["checkpoint_1", "checkpoint_10", "checkpoint_1.mdl", "checkpoint_1.mdl0", "checkpoint_10.mdl"]
    fill(root, *names)
    assert run("--yes", f"{root}/checkpoint_1") == DONE
    assert capsys.readouterr().out == f"Deleted checkpoint {root}/checkpoint_1\n"
    assert left(root) == sorted(names[1:])
    assert run("-yq", f"{root}/checkpoint_1.mdl", f"{root}/checkpoint_10") == DONE
    assert capsys.readouterr().out == ""
    assert left(root) == ["checkpoint_1.mdl0", "checkpoint_10.mdl"]


@pytest.mark.parametrize("name", [*ODD, "*", "?", "a\nb.mdl"])
def test_odd_names(root: str, name: str) -> None:
    """A name that looks like a pattern, or like something decoded, is that name."""
    others = [other for other in (*ODD, "xx.mdl", "1.mdl", "q", "a", " ") if other != name]
    fill(root, name, *others)
    assert run("-y", f"{root}/{name}") == DONE
    assert left(root) == sorted(others)


def test_pattern_of_nothing(root: str) -> None:
    """A pattern is no way to name many."""
    fill(root, "checkpoint_1.mdl", "checkpoint_2.mdl")
    with pytest.raises(FileNotFoundError):
        targets([f"{root}/checkpoint_*.mdl"])


def test_sharded(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a manifest goes as one, and neither its neighbours nor its own folders do."""
    others = ["ckpt_10/.metadata", "ckpt_10/__0_0.distcp", "ckpt_1.mdl", "ckpt_1/folder/x.mdl"]
    fill(root, *SHARDED, *others)
    assert run("--json", "--dry-run", f"{root}/ckpt_1/") == DONE
    report = json.loads(capsys.readouterr().out)
    checkpoint = {"path": f"{root}/ckpt_1/", "size": 16, "files": 4, "sharded": True}
    assert report == {"dry_run": True, "checkpoints": [checkpoint], "failed": {}}
    assert run("-y", f"{root}/ckpt_1") == DONE
    assert left(root) == sorted(others)
    assert run("-y", f"{root}/ckpt_10") == DONE
    fs, path = fsspec.url_to_fs(root)
    if "memory" in fs.protocol or "file" in fs.protocol:
        assert not fs.exists(f"{path}/ckpt_10")


def test_manifest_first(bucket: str, environment: LocalS3) -> None:
    """The manifests go before any other file, so that nothing half deleted looks whole; many go by one request."""
    fill(f"s3://{bucket}", *SHARDED, "ckpt_2/.metadata", "ckpt_2/a.index.json", "ckpt_2/__0_0.distcp", "x.mdl")
    doomed = targets([f"s3://{bucket}/{name}" for name in ("ckpt_1", "ckpt_2", "x.mdl")])
    with recorded_requests() as requests:
        assert delete(doomed) == {}
    assert requests == ["DeleteObjects", "DeleteObject", "DeleteObjects"]  # the second one of notes.txt
    assert left(f"s3://{bucket}") == []
    assert doomed[1].manifests == [".metadata", "a.index.json"]


def test_killed_halfway(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a folder whose deletion was stopped is still recognized, and the same command deletes it."""
    shards = [f"h/model-0000{number}-of-00003.safetensors" for number in range(1, 4)]
    fill(root, "h/config.json", "h/model.safetensors.index.json", *shards, "x.mdl")
    remove = manage_delete.remove

    def killing(fs: Any, files: Any) -> dict[str, Exception]:
        if any(file.endswith(shards[0]) for file in files):
            raise KeyboardInterrupt
        return remove(fs, files)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(manage_delete, "remove", killing)
        delete(targets([f"{root}/h"]))
    assert left(root) == [*shards, "x.mdl"]
    assert delete(targets([f"{root}/h"])) == {}
    assert left(root) == ["x.mdl"]


def test_manifest_that_stays(bucket: str, environment: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint whose manifest cannot be deleted keeps its other files; others go."""
    fill(f"s3://{bucket}", *SHARDED, "x.mdl")
    doomed = targets([f"s3://{bucket}/ckpt_1", f"s3://{bucket}/x.mdl"])
    real = CSXFileSystem._call_s3

    async def refusing(self: CSXFileSystem, method: str, *args: object, **kwargs: object) -> object:
        if method.startswith("delete") and ".metadata" in str(kwargs):
            raise AccessDeniedError("No.", "Ask.")
        return await real(self, method, *args, **kwargs)

    monkeypatch.setattr(CSXFileSystem, "_call_s3", refusing)
    failed = delete(doomed)
    assert [*failed] == [f"s3://{bucket}/ckpt_1"]
    assert isinstance(failed[f"s3://{bucket}/ckpt_1"], AccessDeniedError)
    assert left(f"s3://{bucket}") == sorted(SHARDED)


def test_rest_of_a_sharded_one(root: str) -> None:
    """What a deletion that was cut short has left can be deleted, too."""
    fill(root, "ckpt_1/__0_0.distcp", "ckpt_2/model-00001-of-00002.safetensors", "ckpt_3/.metadata")
    assert run("-y", *(f"{root}/ckpt_{number}" for number in (1, 2, 3))) == DONE
    assert left(root) == []


def test_what_is_no_checkpoint(root: str) -> None:
    """A folder without a manifest is refused, and then nothing goes."""
    fill(root, "run/checkpoint_1.mdl", "run/ckpt_1/.metadata", "x.mdl")
    with pytest.raises(IsADirectoryError, match="not a checkpoint"):
        targets([f"{root}/x.mdl", f"{root}/run"])
    assert run("-y", f"{root}/x.mdl", f"{root}/run/") == FAILED
    assert left(root) == ["run/checkpoint_1.mdl", "run/ckpt_1/.metadata", "x.mdl"]


def test_missing(root: str) -> None:
    """A path with nothing there is reported before anything goes."""
    fill(root, "x.mdl", "y.mdl")
    with pytest.raises(FileNotFoundError, match=r"z\.mdl"):
        targets([f"{root}/x.mdl", f"{root}/z.mdl"])
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        targets([f"{root}/x.mdl/"])
    assert run("-y", f"{root}/x.mdl", f"{root}/z.mdl", f"{root}/y.mdl") == FAILED
    assert left(root) == ["x.mdl", "y.mdl"]


@pytest.mark.parametrize("path", ["s3://{}", "s3://{}/", "s3://", "", "/", "memory://", "s3:/{}/x.mdl"])
def test_buckets_and_tops(path: str, bucket: str, environment: LocalS3) -> None:
    """A bucket, or the top of another filesystem, is no checkpoint."""
    fill(f"s3://{bucket}", "x.mdl")
    with pytest.raises(CheckpointPathError):
        targets([path.format(bucket)])
    assert left(f"s3://{bucket}") == ["x.mdl"]


def test_object_and_folder_of_one_name(bucket: str, environment: LocalS3, moto: str) -> None:
    """On S3 both can be: the name is the object, and with a slash at its end the folder."""
    store = {"key": "a", "secret": "b", "endpoint_url": moto}
    root = f"s3://{uuid.uuid4().hex}"
    fsspec.filesystem("s3", **store).mkdir(root)
    fill(root, "ckpt_1", *SHARDED, **store)
    (there,) = targets([f"{root}/ckpt_1/"], storage_options=store)
    assert len(there.files) == 4
    both = targets([f"{root}/ckpt_1", f"{root}/ckpt_1/"], storage_options=store)
    assert [each.is_folder for each in both] == [False, True]
    assert delete(targets([f"{root}/ckpt_1"], storage_options=store)) == {}
    assert left(root, **store) == sorted(SHARDED)
    assert delete([there]) == {}
    assert left(root, **store) == []


def test_versions(moto: str) -> None:
    """In a versioned bucket a deletion leaves the versions, and one version cannot be named."""
    store = {"key": "a", "secret": "b", "endpoint_url": moto}
    bucket = uuid.uuid4().hex
    fs = fsspec.filesystem("s3", **store, version_aware=True)
    fs.mkdir(bucket)
    fs.make_bucket_versioned(bucket)
    fs.pipe_file(f"{bucket}/x.mdl", b"data")
    version = fs.info(f"{bucket}/x.mdl")["VersionId"]
    with pytest.raises(CheckpointPathError, match="one version"):
        targets([f"s3://{bucket}/x.mdl?versionId={version}"], storage_options=store)
    assert delete(targets([f"s3://{bucket}/x.mdl"], storage_options=store)) == {}
    assert left(f"s3://{bucket}", **store) == []
    assert fs.cat_file(f"{bucket}/x.mdl", version_id=version) == b"data"


def test_the_same_twice(root: str) -> None:
    """A checkpoint that is named twice is one."""
    fill(root, *SHARDED, "x.mdl")
    doomed = targets([f"{root}/x.mdl", f"{root}/ckpt_1", f"{root}/ckpt_1/", f"{root}/x.mdl"])
    assert [each.path for each in doomed] == [f"{root}/x.mdl", f"{root}/ckpt_1/"]


def test_links(tmp_path: Path) -> None:
    """A link goes, and not what it points to."""
    fill(str(tmp_path), *SHARDED, "x.mdl")
    (tmp_path / "link.mdl").symlink_to("x.mdl")
    (tmp_path / "link").symlink_to("ckpt_1")
    (tmp_path / "broken").symlink_to("nowhere")
    assert run("-y", *(str(tmp_path / name) for name in ("link.mdl", "link", "broken"))) == DONE
    assert sorted(left(str(tmp_path))) == sorted([*SHARDED, "x.mdl"])
    assert not os.path.lexists(tmp_path / "broken")


@pytest.mark.parametrize("form", ["file://{}/run", "simplecache::file://{}/run", "dir://run::file://{}"])
def test_chained(form: str, tmp_path: Path) -> None:
    """Behind whatever the URL chains, the checkpoint itself goes."""
    fill(str(tmp_path), *(f"run/{name}" for name in SHARDED), "run/x.mdl", "run/y.mdl", "x.mdl")
    head, separator, tail = form.format(tmp_path).partition("::file" if form.startswith("dir") else "\0")
    assert run("-y", *(f"{head}/{name}{separator}{tail}" for name in ("x.mdl", "ckpt_1"))) == DONE
    assert left(str(tmp_path)) == ["run/y.mdl", "x.mdl"]


def test_dry_run(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run asks no question, deletes nothing, and prints what would be deleted."""
    fill(root, *SHARDED, "x.mdl")
    assert run("--dry-run", f"{root}/ckpt_1", f"{root}/x.mdl") == DONE
    assert capsys.readouterr().out == (
        f"{root}/ckpt_1  16 B (4 files)\n{root}/x.mdl  4 B\n"
        "2 checkpoints, 20 B, would be deleted: pass --yes to delete.\n"
    )
    assert len(left(root)) == 5


def test_json(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What was deleted, as JSON and nothing else."""
    fill(root, "x.mdl")
    assert run("--json", "-y", f"{root}/x.mdl") == DONE
    report = json.loads(capsys.readouterr().out)
    checkpoint = {"path": f"{root}/x.mdl", "size": 4, "files": 1, "sharded": False}
    assert report == {"dry_run": False, "checkpoints": [checkpoint], "failed": {}}


@pytest.mark.slow
def test_nobody_to_ask(environment: LocalS3, bucket: str) -> None:
    """Where no terminal is, nothing goes without --yes; in a process of its own."""
    fill(f"s3://{bucket}", "x.mdl")
    cause, remedy = failure(cszoo("delete", f"s3://{bucket}/x.mdl", input="y\n"))
    assert f"s3://{bucket}/x.mdl" in cause
    assert "--yes" in remedy
    assert left(f"s3://{bucket}") == ["x.mdl"]
    done = cszoo("delete", f"s3://{bucket}/x.mdl", "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (DONE, f"Deleted checkpoint s3://{bucket}/x.mdl\n", "")
    assert left(f"s3://{bucket}") == []


@pytest.mark.parametrize(("answer", "gone"), [("y", True), ("YES", True), ("n", False), ("", False)])
def test_question(tmp_path: Path, answer: str, gone: bool) -> None:
    """On a terminal it asks, and only y and yes count as yes."""
    fill(str(tmp_path), "x.mdl")
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "fsspec_csx", "checkpoint", "delete", str(tmp_path / "x.mdl")]
    try:
        os.write(ours, f"{answer}\n".encode())
        done = subprocess.run(command, check=False, stdin=its, capture_output=True, text=True, timeout=100)
    finally:
        os.close(ours)
        os.close(its)
    assert f"Delete the checkpoint {tmp_path / 'x.mdl'}, 4 B? [y/N]" in done.stderr
    assert (done.returncode, (tmp_path / "x.mdl").exists()) == ((DONE, False) if gone else (FAILED, True))


def test_refusals(server: LocalS3, bucket: str, capsys: pytest.CaptureFixture[str], aws_files: Path) -> None:
    """Who may only read deletes nothing, and the error names what is left; other causes are reported as such."""
    root = f"s3://{bucket}"
    fill(root, *SHARDED, "x.mdl", "y.mdl", **server.storage_options())
    reader = server.storage_options("reader")
    failed = delete(targets([f"{root}/x.mdl", f"{root}/y.mdl", f"{root}/ckpt_1"], storage_options=reader))
    assert [*failed] == [f"{root}/ckpt_1", f"{root}/x.mdl", f"{root}/y.mdl"]
    assert all(isinstance(error, AccessDeniedError) for error in failed.values())
    with pytest.raises(RejectedCredentialsError):
        targets([f"{root}/x.mdl"], storage_options={**reader, "secret": "wrong"})
    with pytest.raises(EndpointError):
        targets([f"{root}/x.mdl"], storage_options={**reader, "endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(BucketNotFoundError):
        targets([f"{root}-missing/x.mdl"], storage_options=reader)
    (aws_files / "credentials").write_text(
        f"[read]\naws_access_key_id = {reader['key']}\naws_secret_access_key = {reader['secret']}\n"
    )
    asked = ["-y", "-p", "read", "--endpoint-url", server.endpoint_url]
    assert run(*asked, f"{root}/x.mdl") == FAILED
    assert f"{root}/x.mdl was refused to" in capsys.readouterr().err
    assert run(*asked, "--json", f"{root}/x.mdl", f"{root}/y.mdl") == FAILED
    printed = capsys.readouterr()
    assert [*json.loads(printed.out)["failed"]] == [f"{root}/x.mdl", f"{root}/y.mdl"]
    cause, remedy = printed.err.splitlines()
    assert cause.startswith(f"cszoo: 2 of 2 checkpoints are left ({root}/x.mdl, {root}/y.mdl): ")
    assert remedy.startswith("Ask for the right")
    assert len(left(root, **server.storage_options())) == 6


def test_local_refusal(tmp_path: Path) -> None:
    """A read-only folder keeps its file, and the others are deleted."""
    fill(str(tmp_path), "a/x.mdl", "b/x.mdl")
    doomed = targets([tmp_path / "a" / "x.mdl", tmp_path / "b" / "x.mdl"])
    (tmp_path / "a" / "x.mdl").unlink()
    (tmp_path / "a" / "x.mdl").mkdir()  # what root, too, cannot unlink
    failed = delete(doomed)
    assert [*failed] == [str(tmp_path / "a" / "x.mdl")]
    assert not (tmp_path / "b" / "x.mdl").exists()
