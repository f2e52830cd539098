"""Directory buckets of S3 Express: sessions, listings in no order, prefixes that end in a slash, other ETags."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import fsspec
import pytest
import torch
from directory_bucket import BUCKET, DirectoryBucket, directory_bucket

from fsspec_csx import copy, distributed, load, move, save, stream
from fsspec_csx.errors import BucketNotFoundError
from fsspec_csx.manage import delete, gc, prune
from fsspec_csx.manage import s3 as manage_s3
from fsspec_csx.manage.list import checkpoints, latest_of

ROOT = f"s3://{BUCKET}/run"


@pytest.fixture
def express(monkeypatch: pytest.MonkeyPatch) -> Iterator[DirectoryBucket]:
    """The bucket, for the environment's credentials; it got no request that it does not support."""
    with directory_bucket() as held:
        for name, value in (("ENDPOINT_URL", held.url), ("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield held
    assert held.refused == []


def test_files(express: DirectoryBucket) -> None:
    """The filesystem writes, reads, lists, matches patterns, copies, moves and deletes, with few sessions."""
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    for name in ("b2.txt", "a1.txt", "sub/c.txt", "b1.txt"):
        fs.pipe_file(f"{ROOT}/{name}", name.encode())
    with fsspec.open(f"{ROOT}/b1.txt", "rb") as file:
        assert file.read() == b"b1.txt"
    top = f"{BUCKET}/run"
    assert fs.ls(ROOT) == [f"{top}/{name}" for name in ("a1.txt", "b1.txt", "b2.txt", "sub")]
    for refresh in (False, True):
        if refresh:
            fs.invalidate_cache()
        assert fs.glob(f"{ROOT}/b*.txt") == [f"{top}/b1.txt", f"{top}/b2.txt"]
        assert fs.glob(f"{ROOT}/s*") == [f"{top}/sub"]
        assert fs.find(ROOT, prefix="b") == [f"{top}/b1.txt", f"{top}/b2.txt"]
    assert fs.find(ROOT) == [f"{top}/{name}" for name in ("a1.txt", "b1.txt", "b2.txt", "sub/c.txt")]
    assert fs.exists(f"s3://{BUCKET}")
    assert not fs.exists(f"{ROOT}/b")
    fs.mv(f"{ROOT}/b1.txt", f"{ROOT}/moved.txt")  # their ETags differ, and are no checksums
    fs.cp_file(f"{ROOT}/b2.txt", f"{ROOT}/copied.txt")
    assert fs.cat_file(f"{ROOT}/copied.txt") == b"b2.txt"
    fs.rm(ROOT, recursive=True)
    assert express.objects == {}
    assert 1 <= express.sessions <= 3  # requests at the same time may each make the first one


@pytest.mark.slow
def test_checkpoints(express: DirectoryBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of each kind are saved, loaded, listed by step, copied, moved, pruned and deleted."""
    monkeypatch.setattr(manage_s3, "PAGE", 2)
    state = {"w": torch.arange(6.0), "v": torch.ones(2)}
    for step in (3, 10, 2):
        save(state, f"{ROOT}/checkpoint_{step}.mdl")
    distributed.save(dict(state), f"{ROOT}/checkpoint_11")
    save(state, f"{ROOT}/checkpoint-12", format="huggingface", max_shard_size=24)
    found = checkpoints(ROOT)
    assert [each.step for each in found] == [2, 3, 10, 11, 12]
    for each in found:
        assert torch.equal(load(each.path, keys=["w"])["w"], state["w"])
        assert {name for name, _ in stream(each.path)} == {"v", "w"}
    newest = latest_of(checkpoints(ROOT))
    assert newest is not None
    assert newest.step == 12
    copy(f"{ROOT}/checkpoint_10.mdl", f"s3://{BUCKET}/other/x.mdl")
    move(f"{ROOT}/checkpoint-12", f"s3://{BUCKET}/other/hf")
    assert torch.equal(load(f"s3://{BUCKET}/other/hf")["w"], state["w"])
    prune.prune(ROOT, 1)
    assert [each.step for each in checkpoints(ROOT)] == [10, 11]
    assert delete.delete(delete.targets([each.path for each in checkpoints(ROOT)])) == {}
    assert checkpoints(f"s3://{BUCKET}", recursive=True) != []
    assert not any(key.startswith("run/") for key in express.objects)


def test_large(express: DirectoryBucket) -> None:
    """Parts and ranges of a large object are signed with the session, as the first request is."""
    state = {"w": torch.arange(10 * 2**20, dtype=torch.int32), "v": torch.ones(3)}
    save(state, f"{ROOT}/x.safetensors")
    found = load(f"{ROOT}/x.safetensors")
    assert torch.equal(found["w"], state["w"])
    assert 1 <= express.sessions <= 3
    assert express.uploads == {}


def test_unfinished_uploads(express: DirectoryBucket) -> None:
    """The uploads of a folder are requested, and those of the path and below it are found."""
    for name, key in (("1", "run/a.mdl"), ("2", "run/ab.mdl"), ("3", "run/a/b.mdl"), ("4", "other/a.mdl")):
        express.uploads[name] = key, {}
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    for key, ids in (("run/a.mdl", ["1"]), ("run/a", ["3"]), ("run", ["1", "3", "2"])):
        assert [each.id for each in manage_s3.unfinished_uploads(fs, f"{BUCKET}/{key}")] == ids
    found = gc.leftovers(ROOT, older_than=timedelta(0))
    assert [each.contents.id for each in found if isinstance(each.contents, manage_s3.UnfinishedUpload)] == [
        "1",
        "3",
        "2",
    ]


def test_is_not_created(express: DirectoryBucket) -> None:
    """A directory bucket that is missing is not created, as its zone would have to be known."""
    with pytest.raises(BucketNotFoundError, match="directory bucket"):
        save([1], "s3://other--use1-az4--x-s3/x.mdl")
