"""Stores whose responses differ from Amazon S3's: the differences are accepted where the meaning is clear."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest
from listener import Answer, Heard, listening
from proxy import Fault, FaultProxy, error_answer, through

from fsspec_csx.errors import DeleteError, EndpointError, UnavailableError
from fsspec_csx.manage.s3 import unfinished_uploads
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

MIB = 2**20
ALWAYS = 1000
ONE_ATTEMPT, THREE_ATTEMPTS = ({"retries": {"total_max_attempts": most}} for most in (1, 3))


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


@pytest.mark.parametrize("chunked", [True, False])
def test_objects_without_length(tmp_path: Path, chunked: bool) -> None:
    """Objects that come in chunks, or until the connection ends, are read whole: their sizes are looked up."""
    objects = {"empty": b"", "small": b"12345", "request": os.urandom(4 * MIB), "large": os.urandom(9 * MIB + 5)}

    def answer(heard: Heard) -> Answer:
        data = objects[heard.path.rpartition("/")[2]]
        if heard.method == "HEAD":
            return 200, {"ETag": '"e"', "Content-Length": str(len(data))}, b""
        status, heads = 200, {"ETag": '"e"', "Content-Length": "", "Connection": "close"}
        if "range" in heard.headers:
            first, last = map(int, heard.headers["range"].removeprefix("bytes=").split("-"))
            status, size, data = 206, len(data), data[first : last + 1]
            heads["Content-Range"] = f"bytes {first}-{first + len(data) - 1}/{size}"
        if chunked:
            heads["Transfer-Encoding"] = "chunked"
            pieces = [data[start : start + MIB] for start in range(0, len(data), MIB)]
            data = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])
        return status, heads, data

    with listening(answer) as store:
        fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=store.url)
        assert fs.cat_file("bucket/small", start=2, end=100) == b"345"
        for name, data in objects.items():
            assert fs.cat_file(f"bucket/{name}") == data
            fs.get_file(f"bucket/{name}", str(tmp_path / name))
            assert (tmp_path / name).read_bytes() == data
            memory = memoryview(bytearray(len(data)))
            assert fs.readinto_objects([(f"bucket/{name}", 0, memory, len(data))]) == [len(data)]
            assert memory == data
        paths = {f"bucket/{name}": data for name, data in objects.items()}
        assert fs.cat(list(paths)) == paths
        fs.get(list(paths), [str(tmp_path / f"many-{name}") for name in objects])
        assert all((tmp_path / f"many-{name}").read_bytes() == data for name, data in objects.items())
        many = [("bucket/small", 0, memoryview(bytearray(size)), size) for size in [5] * 9 + [4] * 9]
        assert fs.readinto_objects(many) == [5] * 18  # also those that were expected to be smaller
        assert all(each[2] == b"12345"[: each[3]] for each in many)


def test_object_that_ends_early() -> None:
    """A body without a length that ends before the object does is completed, or refused if it has chunks."""
    data, cut = bytes(range(200)), 150

    def answer(heard: Heard) -> Answer:
        if heard.method == "HEAD":
            return 200, {"ETag": '"e"', "Content-Length": str(len(data))}, b""
        if "range" in heard.headers:
            span = f"bytes {cut}-{len(data) - 1}/{len(data)}"
            return 206, {"ETag": '"e"', "Content-Range": span}, data[cut:]
        heads = {"ETag": '"e"', "Content-Length": "", "Connection": "close"}
        return 200, heads | extra, begin + data[:cut]

    extra: dict[str, str] = {}
    begin = b""
    with listening(answer) as store:
        fs = fsspec.filesystem("s3", key="k", secret="s", endpoint_url=store.url)
        assert fs.cat_file("bucket/object") == data
        extra, begin = {"Transfer-Encoding": "chunked"}, b"c8\r\n"
        fs = fsspec.filesystem("s3", key="k", secret="t", endpoint_url=store.url, config_kwargs=ONE_ATTEMPT)
        fs.retries = 1
        with pytest.raises(OSError, match=r"closed the connection|invalid S3 response"):
            fs.cat_file("bucket/object")
        extra, begin = {"Content-Encoding": "gzip"}, b""
        fs = fsspec.filesystem("s3", key="k", secret="u", endpoint_url=store.url, config_kwargs=THREE_ATTEMPTS)
        with pytest.raises(EndpointError, match="Content-Encoding 'gzip' and no length"):
            fs.cat_file("bucket/object")


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
    proxy.faults = [Fault("GET", query="tagging", times=ALWAYS, answer=(200, {}, b"<Tagging><TagSet><Tag><Key>a"))]
    alone = through(proxy, server, config_kwargs={"retries": {"total_max_attempts": 1}})
    with pytest.raises(UnavailableError, match="damaged"):
        alone.open(f"{bucket}/object", "ab")  # it has tags, which would be lost


@pytest.mark.parametrize("code", ["NotImplemented", "MethodNotAllowed", "XNotImplemented"])
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
    """Some stores report that the name of the user's own bucket is taken: a write continues if the user can see it."""
    taken = Fault(
        "PUT", when=lambda request: request.path.strip("/") == new_bucket, before=lambda: fs.mkdir(new_bucket)
    )
    taken.answer = error_answer(409, "BucketAlreadyExists")
    proxy.faults = [taken]
    other = through(proxy, server, use_listings_cache=True)
    assert new_bucket not in other.ls("")
    other.mkdir(new_bucket)
    assert taken.done == 1
    assert new_bucket in other.ls("")
    fs.rmdir(new_bucket)
    taken.times = 1
    other.pipe_file(f"{new_bucket}/object", b"data")
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


def test_checksums_of_large_objects_alone_are_refused(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    """MinIO before 2025 ignores the checksum of a small object, and refuses an upload that names the algorithm."""
    other, data = through(proxy, server), os.urandom(10 * MIB)
    other.pipe_file(f"{bucket}/small", b"1")
    refusal = Fault(
        "POST",
        times=ALWAYS,
        when=lambda request: "x-amz-checksum-algorithm" in request.headers,
        answer=error_answer(400, "InvalidArgument"),
    )
    proxy.faults = [refusal]
    for name in ("large", "other"):
        other.pipe_file(f"{bucket}/{name}", data)
        assert fs.cat_file(f"{bucket}/{name}") == data
    other.pipe_file(f"{bucket}/small", b"2")
    assert refusal.done == 1
    assert caplog.text.count("carry no checksums") == 1
    assert ["x-amz-checksum-crc64nvme" in each.headers for each in proxy.made("PUT") if "small" in each.path] == [
        True
    ] * 2


def test_conditions_and_tags_that_are_refused(
    server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy
) -> None:
    """An append compares the ETag itself then; StorageGRID has a code of its own, and Backblaze B2 the status 400."""
    fs.pipe_file(f"{bucket}/object", b"1")
    for number, refusal in enumerate([(501, "XNotImplemented"), (400, "InvalidArgument")], 1):
        conditional = Fault("PUT", when=lambda request: "if-match" in request.headers, answer=error_answer(*refusal))
        proxy.faults = [conditional, Fault("GET", query="tagging", answer=error_answer(*refusal))]
        with through(proxy, server).open(f"{bucket}/object", "ab") as file:
            file.write(b"2")
        assert [each.done for each in proxy.faults] == [1, 1]
        assert fs.cat_file(f"{bucket}/object") == b"1" + b"2" * number


def test_documents_with_a_byte_order_mark() -> None:
    """Some servers begin their documents with one."""
    entry = "<Contents><Key>object</Key><Size>1</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
    body = f'\ufeff<?xml version="1.0"?>\n<ListBucketResult>{entry}</ListBucketResult>'.encode()
    with listening(lambda heard: (200, {}, body)) as store:
        assert fsspec.filesystem("s3", key="k", secret="s", endpoint_url=store.url).ls("bucket") == ["bucket/object"]


@pytest.mark.parametrize("status", [408, 520])
def test_statuses_of_proxies(server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy, status: int) -> None:
    """A request that a proxy before the store could not pass on, or not in time, is repeated."""
    other, data = through(proxy, server), os.urandom(10 * MIB)
    for method in ("PUT", "POST", "HEAD", "GET"):
        proxy.faults.append(Fault(method, answer=(status, {}, b"<html>not in time</html>")))
    other.pipe_file(f"{bucket}/object", data)
    assert other.info(f"{bucket}/object")["size"] == len(data)
    assert other.cat_file(f"{bucket}/object") == data
    assert [fault.done for fault in proxy.faults] == [1, 1, 1, 1]
    proxy.faults = [Fault("PUT", times=ALWAYS, answer=(status, {}, b""))]
    with pytest.raises(UnavailableError, match=str(status)):
        through(proxy, server, config_kwargs=ONE_ATTEMPT).pipe_file(f"{bucket}/object", b"new")
    assert fs.cat_file(f"{bucket}/object") == data


def test_deletion_answered_by_a_page(server: LocalS3, fs: CSXFileSystem, bucket: str, proxy: FaultProxy) -> None:
    """A page in place of the result of a deletion is an error, as nothing may be deleted; no body is none."""
    names = [f"{bucket}/{name}" for name in "ab"]
    fs.pipe(dict.fromkeys(names, b"1"))
    proxy.faults = [Fault("POST", query="delete", answer=(200, {}, b"<html><body>Sign in</body></html>"))]
    other = through(proxy, server)
    with pytest.raises(EndpointError, match="a document whose root is 'html'"):
        other.rm(names)
    assert fs.find(bucket) == names
    proxy.faults = [Fault("POST", query="delete", answer=(200, {}, b""))]
    other.rm(names)
