"""Buckets: the first write creates one if that is allowed; buckets of other users are recognized."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from conftest import recorded_requests

from fsspec_csx.errors import AccessDeniedError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

BLOCK = 5 * 2**20


@pytest.mark.parametrize("size", [0, 3, 2 * BLOCK + 1])
def test_first_write_makes_the_bucket(server: LocalS3, fs: CSXFileSystem, new_bucket: str, size: int) -> None:
    """A write to a missing bucket makes it, whatever the size."""
    url = f"s3://{new_bucket}/run/key"
    with fsspec.open(url, "wb", default_block_size=BLOCK, **server.storage_options()) as file:
        file.write(b"x" * size)
    assert fs.cat_file(url) == b"x" * size


@pytest.mark.parametrize("way", ["pipe", "put", "touch"])
def test_other_writes_make_the_bucket(fs: CSXFileSystem, new_bucket: str, tmp_path: Path, way: str) -> None:
    """So do the writes that need no file object."""
    path = f"{new_bucket}/key"
    if way == "pipe":
        fs.pipe_file(path, b"data")
    elif way == "put":
        (tmp_path / "file").write_bytes(b"data")
        fs.put_file(str(tmp_path / "file"), path)
    else:
        fs.touch(path)
    assert fs.exists(path)


def test_normal_write_is_one_request(server: LocalS3, bucket: str) -> None:
    """A small write into an existing bucket costs one request, at the root of the bucket and below it."""
    for path in (f"s3://{bucket}/key", f"s3://{bucket}/run/key"):
        with recorded_requests() as operations, fsspec.open(path, "wb", **server.storage_options()) as file:
            file.write(b"data")
        assert operations == ["PutObject"]


def test_write_that_is_given_up_makes_no_bucket(server: LocalS3, fs: CSXFileSystem, new_bucket: str) -> None:
    """A write left by an exception does not leave an empty bucket."""
    with (
        pytest.raises(ZeroDivisionError),
        fsspec.open(f"s3://{new_bucket}/run/key", "wb", **server.storage_options()) as file,
    ):
        file.write(b"data")
        raise ZeroDivisionError
    assert not fs.exists(new_bucket)


@pytest.mark.parametrize("name", ["reader", "tenant"])
def test_bucket_that_may_not_be_made(server: LocalS3, fs: CSXFileSystem, new_bucket: str, name: str) -> None:
    """Where making it is not allowed the error names the bucket, and none is made."""
    with (
        pytest.raises(AccessDeniedError, match=new_bucket),
        fsspec.open(f"s3://{new_bucket}/key", "wb", **server.storage_options(name)) as file,
    ):
        file.write(b"data")
    assert not fs.exists(new_bucket)


def test_mkdir_and_makedirs(server: LocalS3, fs: CSXFileSystem, bucket: str, new_bucket: str) -> None:
    """mkdir and makedirs make a missing bucket, and distinguish an existing one from someone else's."""
    fs.makedirs(f"{new_bucket}/run/deep", exist_ok=True)
    assert fs.exists(new_bucket)
    fs.makedirs(new_bucket, exist_ok=True)
    with pytest.raises(FileExistsError, match=new_bucket):
        fs.mkdir(new_bucket)
    with pytest.raises(FileExistsError, match=new_bucket):
        fs.makedirs(new_bucket)
    tenant = fsspec.filesystem("s3", **server.storage_options("tenant"))
    for make in (tenant.mkdir, lambda path: tenant.makedirs(path, exist_ok=True)):
        for path in (bucket, f"{bucket}/run"):
            with pytest.raises(AccessDeniedError, match=bucket):
                make(path)


def test_mkdir_without_parents_needs_the_bucket(fs: CSXFileSystem, new_bucket: str) -> None:
    """mkdir of a folder in a missing bucket makes nothing if parents shall not be made."""
    with pytest.raises(FileNotFoundError, match=new_bucket):
        fs.mkdir(f"{new_bucket}/run", create_parents=False)
    assert not fs.exists(new_bucket)


def test_many_writers_make_one_bucket(server: LocalS3, fs: CSXFileSystem, new_bucket: str) -> None:
    """Writers that find the bucket missing at the same time all succeed."""
    fs.pipe({f"{new_bucket}/key-{number}": b"data" for number in range(12)})
    assert len(fs.ls(new_bucket)) == 12
