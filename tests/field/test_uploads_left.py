"""No write leaves a multipart upload behind, whichever of its requests fails, and the old object stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from proxy import Fault, FaultProxy, error_answer, through
from thinning import thinned

from fsspec_csx.errors import AccessDeniedError, ObjectNotFoundError
from fsspec_csx.s3 import server_copy
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

MIB = 2**20
PART = 5 * MIB
DATA = os.urandom(2 * PART + 1234)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has more than one part of the least size is copied in parts."""
    monkeypatch.setattr(server_copy, "_COPIED_WHOLE", PART)


def write(fs: CSXFileSystem, bucket: str, local: Path) -> None:
    """By a file."""
    with fs.open(f"{bucket}/target", "wb", block_size=PART) as file:
        file.write(DATA)


def append(fs: CSXFileSystem, bucket: str, local: Path) -> None:
    """By a file that begins with what is there."""
    with fs.open(f"{bucket}/target", "ab", block_size=PART) as file:
        file.write(DATA)


def put(fs: CSXFileSystem, bucket: str, local: Path) -> None:
    """From a local file."""
    (local / "x").write_bytes(DATA)
    fs.put_file(str(local / "x"), f"{bucket}/target", chunksize=PART)


WAYS: dict[str, Callable[[CSXFileSystem, str, Path], object]] = {
    "open": write,
    "append": append,
    "put_file": put,
    "pipe_file": lambda fs, bucket, local: fs.pipe_file(f"{bucket}/target", DATA, chunksize=PART),
    "cp_file": lambda fs, bucket, local: fs.cp_file(f"{bucket}/source", f"{bucket}/target"),
    "cp_file, ETag": lambda fs, bucket, local: fs.cp_file(f"{bucket}/source", f"{bucket}/target", preserve_etag=True),
    "merge": lambda fs, bucket, local: fs.merge(f"{bucket}/target", [f"{bucket}/source"] * 2),
    "setxattr": lambda fs, bucket, local: fs.setxattr(f"{bucket}/target", a="b"),
    "take_file": lambda fs, bucket, local: fs.take_file(fs, f"{bucket}/source", f"{bucket}/target"),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", thinned(WAYS, "open", "append"))
def test_each_request_of_an_upload_fails(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, tmp_path: Path, way: str
) -> None:
    """Refused at its first request, its second, and so on, a write ends its upload, until nothing is refused."""
    fs.pipe_file(f"{bucket}/source", DATA, chunksize=PART)
    asked = through(proxy, server, max_concurrency=2)
    denied = error_answer(403, "AccessDenied")
    fault, refused = Fault(), 0
    while refused == 0 or fault.done:
        fs.pipe_file(f"{bucket}/target", DATA[::-1], chunksize=PART)
        fault = Fault(when=lambda each: each.method != "DELETE", skip=refused, answer=denied)
        proxy.faults = [fault]
        try:
            WAYS[way](asked, bucket, tmp_path)
        except AccessDeniedError:
            assert fs.cat_file(f"{bucket}/target") == DATA[::-1]
        assert fs.list_multipart_uploads(bucket) == []
        refused += 1
    assert refused > 5


def test_merge(fs: CSXFileSystem, bucket: str) -> None:
    """Objects of any size are joined, whether they are named by paths or by URLs, and are not touched."""
    sizes = [0, 1, PART - 1, 0, 3 * PART + 17, 1000, 2 * PART, 0]
    pieces = [os.urandom(size) for size in sizes]
    for number, piece in enumerate(pieces):
        fs.pipe_file(f"{bucket}/{number}", piece)
    paths = [f"{'s3://' * (number % 2)}{bucket}/{number}" for number in range(len(pieces))]
    fs.merge(f"s3://{bucket}/merged", paths, ContentType="text/csv", Metadata={"a": "b"})
    assert fs.cat_file(f"{bucket}/merged") == b"".join(pieces)
    head = fs.call_s3("head_object", Bucket=bucket, Key="merged")
    assert (head["ContentType"], head["Metadata"]) == ("text/csv", {"a": "b"})
    assert [fs.cat_file(f"{bucket}/{number}") for number in range(len(pieces))] == pieces


@pytest.mark.parametrize("large", [False, True])
def test_merge_into_one_of_its_sources(fs: CSXFileSystem, bucket: str, large: bool) -> None:
    """An object may be the target and a source."""
    first = DATA if large else b"first\n"
    fs.pipe({f"{bucket}/a": first, f"{bucket}/b": b"second\n"})
    fs.merge(f"{bucket}/a", [f"{bucket}/a", f"{bucket}/b"])
    assert fs.cat_file(f"{bucket}/a") == first + b"second\n"


@pytest.mark.slow
def test_merge_copies_what_it_can(server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy) -> None:
    """Only the parts that are of two objects are read; all parts but the last are of one size."""
    fs.pipe_file(f"{bucket}/a", os.urandom(20 * MIB))
    fs.pipe_file(f"{bucket}/b", os.urandom(30 * MIB))
    through(proxy, server).merge(f"{bucket}/c", [f"{bucket}/a", f"{bucket}/b"])
    assert fs.cat_file(f"{bucket}/c") == fs.cat_file(f"{bucket}/a") + fs.cat_file(f"{bucket}/b")
    assert sum(each.sent for each in proxy.made("GET")) == 8 * MIB
    lengths = [
        fs.call_s3("head_object", Bucket=bucket, Key="c", PartNumber=number)["ContentLength"] for number in range(1, 8)
    ]
    assert lengths == [8 * MIB] * 6 + [2 * MIB]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_merge_of_what_is_missing(fs: CSXFileSystem, bucket: str, missing: int) -> None:
    """It is named, and nothing is written."""
    names = [f"{bucket}/{number}" for number in range(3)]
    fs.pipe(dict.fromkeys(names, DATA))
    fs.rm_file(names[missing])
    with pytest.raises(ObjectNotFoundError, match=f"s3://{names[missing]}"):
        fs.merge(f"{bucket}/merged", names)
    assert not fs.exists(f"{bucket}/merged")
    assert fs.list_multipart_uploads(bucket) == []


def test_merge_of_nothing(fs: CSXFileSystem, bucket: str) -> None:
    """No sources are an error; empty ones make an empty object."""
    with pytest.raises(ValueError, match="nothing to merge"):
        fs.merge(f"{bucket}/merged", [])
    fs.touch(f"{bucket}/empty")
    fs.merge(f"{bucket}/merged", [f"{bucket}/empty"] * 2)
    assert fs.cat_file(f"{bucket}/merged") == b""


@pytest.mark.parametrize("preserve_etag", [False, True])
def test_copy_of_what_a_listing_still_has(fs: CSXFileSystem, server: LocalS3, bucket: str, preserve_etag: bool) -> None:
    """A source that another program removed is not found, and no upload is begun."""
    listing = type(fs)(**server.storage_options(), use_listings_cache=True, skip_instance_cache=True)
    fs.pipe_file(f"{bucket}/big", DATA, chunksize=PART)
    listing.ls(bucket)
    fs.rm_file(f"{bucket}/big")
    with pytest.raises(ObjectNotFoundError, match=f"s3://{bucket}/big"):
        listing.cp_file(f"s3://{bucket}/big", f"s3://{bucket}/copy", preserve_etag=preserve_etag)
    assert not fs.exists(f"{bucket}/copy")
    assert fs.list_multipart_uploads(bucket) == []


def test_touch(fs: CSXFileSystem, server: LocalS3, bucket: str) -> None:
    """It makes an empty object, and empties none unless it is to, whatever a listing says."""
    listing = type(fs)(**server.storage_options(), use_listings_cache=True, skip_instance_cache=True)
    listing.ls(bucket)
    fs.pipe_file(f"{bucket}/x", b"precious")
    with pytest.raises(ValueError, match=f"s3://{bucket}/x exists"):
        listing.touch(f"s3://{bucket}/x", truncate=False)
    assert fs.cat_file(f"{bucket}/x") == b"precious"
    listing.touch(f"{bucket}/y", truncate=False)
    listing.touch(f"{bucket}/x", ContentType="text/csv")
    assert fs.cat([f"{bucket}/x", f"{bucket}/y"]) == {f"{bucket}/x": b"", f"{bucket}/y": b""}
    assert fs.info(f"{bucket}/x")["ContentType"] == "text/csv"
