"""Stores that speak S3 with an accent: what they answer otherwise than Amazon S3 is understood if it is clear."""

from __future__ import annotations

import os

import fsspec
import pytest
from listener import Answer, Heard, listening
from proxy import Fault, FaultProxy, error_answer, through

from fsspec_csx.errors import DeleteError
from fsspec_csx.manage.s3 import unfinished_uploads
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

MIB = 2**20
ALWAYS = 1000


def test_range_with_status_200(server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy) -> None:
    """A range that says so is one, though the status is that of a whole object."""
    data = os.urandom(9 * MIB)
    fs.pipe_file(f"{bucket}/object", data)
    proxy.faults = [Fault("GET", times=ALWAYS, when=lambda request: "range" in request.headers, status=200)]
    other = through(proxy, server)
    assert other.cat_file(f"{bucket}/object") == data
    assert other.cat_file(f"{bucket}/object", start=-2000, end=-1000) == data[-2000:-1000]
    with other.open(f"{bucket}/object", "rb") as file:
        assert file.read() == data
    assert proxy.faults[0].done > 3


def test_new_upload_with_another_root() -> None:
    """Some stores name the document with the id of an upload without the word Result."""
    parts: dict[str, int] = {}
    heads = {"ETag": '"etag"'}

    def answer(heard: Heard) -> Answer:
        if heard.method == "PUT":
            parts[heard.path] = len(heard.body)
            return 200, heads, b""
        if "uploads" in heard.path:
            return 200, {}, b"<InitiateMultipartUpload><UploadId>an-id</UploadId></InitiateMultipartUpload>"
        return 200, {}, b'<CompleteMultipartUploadResult><ETag>"e-2"</ETag></CompleteMultipartUploadResult>'

    with listening(answer) as store:
        fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=store.url)
        fs.pipe_file("bucket/object", bytes(12 * MIB))
    assert sum(parts.values()) == 12 * MIB
    assert all("uploadId=an-id" in path for path in parts)


def test_tags_that_are_the_object(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that ignores ``?tagging`` returns the object: it has no tags, and the request is not repeated."""
    fs.pipe_file(f"{bucket}/object", b"12345")
    for body in (b"12345", b"", b"<html></html>"):
        proxy.faults = [Fault("GET", query="tagging", times=ALWAYS, answer=(200, {"ETag": '"e"'}, body))]
        with through(proxy, server).open(f"{bucket}/object", "ab") as file:
            file.write(b"6")
        assert proxy.faults[0].done == 1
    assert fs.cat_file(f"{bucket}/object") == b"12345666"
    assert caplog.text.count("are not kept") == 3


@pytest.mark.parametrize("code", ["NotImplemented", "MethodNotAllowed"])
def test_bucket_without_versions(
    server: LocalS3, fs: CSXFileSystem, new_bucket: str, proxy: FaultProxy, code: str
) -> None:
    """A bucket of a store that knows no versions is deleted with its objects."""
    fs.pipe({f"{new_bucket}/{name}": b"1" for name in "abc"})
    proxy.faults = [Fault("GET", query="versioning", answer=error_answer(501, code))]
    through(proxy, server).rm(new_bucket, recursive=True)
    assert proxy.faults[0].done == 1
    assert not fs.exists(new_bucket)


def test_bucket_that_another_writer_made(
    server: LocalS3, fs: CSXFileSystem, new_bucket: str, proxy: FaultProxy
) -> None:
    """Some stores say of a user's own bucket that the name is taken: a write goes on if it can be seen."""
    taken = Fault(
        "PUT", when=lambda request: request.path.strip("/") == new_bucket, before=lambda: fs.mkdir(new_bucket)
    )
    taken.answer = error_answer(409, "BucketAlreadyExists")
    proxy.faults = [taken]
    through(proxy, server).pipe_file(f"{new_bucket}/object", b"data")
    assert taken.done == 1
    assert fs.cat_file(f"{new_bucket}/object") == b"data"


def test_no_uploads(server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy) -> None:
    """Some stores answer with an error if a bucket has no uploads."""
    fs.pipe_file(f"{bucket}/object", b"data")
    proxy.faults = [Fault("GET", query="uploads", answer=error_answer(404, "NoSuchUpload"))]
    assert unfinished_uploads(through(proxy, server), bucket) == []
    assert proxy.faults[0].done == 1


@pytest.mark.parametrize("said", ["<Message>Locked</Message>", "<Code>Locked</Code>", ""])
def test_deletion_refused_without_a_message(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, said: str
) -> None:
    """The error of a deletion says what the server does."""
    fs.pipe({f"{bucket}/{name}": b"1" for name in "ab"})
    body = f"<DeleteResult><Error><Key>a</Key>{said}</Error></DeleteResult>".encode()
    proxy.faults = [Fault("POST", query="delete", answer=(200, {}, body))]
    with pytest.raises(DeleteError, match="Locked" if said else "no reason"):
        through(proxy, server).rm([f"{bucket}/a", f"{bucket}/b"])
