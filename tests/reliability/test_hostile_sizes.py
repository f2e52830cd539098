"""A wrong size of an object takes neither memory nor minutes; keys do not lead into other folders."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from listener import Answer, Heard, Listener, listening
from memory import little_memory

from fsspec_csx import load
from fsspec_csx.errors import CSXError, EndpointError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS

KEYS = {"key": "AKIA0000000000WXYZ", "secret": "a-secret-of-ours"}
SOON = 40.0
HUGE = 10**13
DATA = bytes(range(250)) * 4
WHEN = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
FOUND = {"ETag": '"0"', **WHEN}


@pytest.fixture(scope="module")
def server() -> Iterator[Listener]:
    """A server that is named as the endpoint."""
    with listening() as running:
        yield running


@pytest.fixture
def fs(server: Listener, monkeypatch: pytest.MonkeyPatch) -> CSXFileSystem:
    """A filesystem on this server, without waits between attempts."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    server.heard.clear()
    options = {"endpoint_url": server.url, "use_listings_cache": False, "skip_instance_cache": True}
    made = fsspec.filesystem("s3", **KEYS, **options)
    assert isinstance(made, CSXFileSystem)
    return made


def honest(heard: Heard, headers: dict[str, str], size: int | None = None) -> Answer:
    """The bytes of an object, whose size a HEAD may give wrongly."""
    if heard.method == "HEAD":
        return 200, {**headers, "Content-Length": str(len(DATA) if size is None else size)}, b""
    if not (report := heard.headers.get("range")):
        return 200, headers, DATA
    start, end = (int(each) for each in report.removeprefix("bytes=").split("-"))
    if start >= len(DATA):
        return 416, {"Content-Range": f"bytes */{len(DATA)}"}, b""
    body = DATA[start : end + 1]
    return 206, {**headers, "Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(DATA)}"}, body


def broken_off(heard: Heard, length: str = str(HUGE), total: str = "") -> Answer:
    """An answer of some bytes that is said to be longer, or that says something else that is not so."""
    headers = {**FOUND, "Content-Length": length, "Connection": "close"}
    report = heard.headers.get("range", "").removeprefix("bytes=")
    if report and total:
        return 206, {**headers, "Content-Range": f"bytes {report}/{total}", "Content-Length": "1000"}, DATA
    return 200, headers, DATA


LIES: dict[str, Callable[[Heard], Answer]] = {
    "head": lambda heard: honest(heard, FOUND, HUGE),
    "length": broken_off,
    "range": lambda heard: broken_off(heard, total=str(HUGE)),
    "negative": lambda heard: broken_off(heard, "-5"),
    "no_number": lambda heard: broken_off(heard, "many"),
    "two_numbers": lambda heard: broken_off(heard, "5, 7"),
    "range_of_none": lambda heard: broken_off(heard, "1000", "x-y"),
    "shrunk": lambda heard: honest(heard, FOUND, 5 * len(DATA)),
}
READS: dict[str, Callable[[CSXFileSystem, Path], object]] = {
    "load": lambda fs, folder: load("s3://bucket/a.mdl", storage_options=dict(fs.storage_options)),
    "cat": lambda fs, folder: fs.cat_file("bucket/a.mdl"),
    "cat_end": lambda fs, folder: fs.cat_file("bucket/a.mdl", start=-10),
    "get": lambda fs, folder: fs.get_file("bucket/a.mdl", f"{folder}/a"),
    "read": lambda fs, folder: fs.open("bucket/a.mdl", "rb").read(),
}
# If only HEAD, or only a partial response, is wrong, the whole object can be read.
UNHARMED = {(lie, read) for lie in ("head", "shrunk", "range_of_none") for read in ("cat", "get")}
TRIED = [(lie, read) for lie in ("head", "length", "range", "shrunk") for read in READS]
TRIED += [(lie, read) for lie in ("negative", "no_number", "range_of_none") for read in ("cat", "read")]
TRIED += [("two_numbers", "read")]


@pytest.mark.parametrize(("lie", "read"), TRIED)
def test_size_that_is_not_so(server: Listener, fs: CSXFileSystem, tmp_path: Path, lie: str, read: str) -> None:
    """It is reported soon, as an error with a remedy, and memory is taken for what has come alone."""
    server.answer = LIES[lie]
    if (lie, read) in UNHARMED:
        assert READS[read](fs, tmp_path) in (DATA, None)
        return
    began = time.monotonic()
    with little_memory(160 * 2**20), pytest.raises((OSError, MemoryError, ValueError)) as caught:
        READS[read](fs, tmp_path)
    assert time.monotonic() - began < SOON
    assert isinstance(caught.value, CSXError)
    assert caught.value.remedy
    assert not list(tmp_path.glob("a*"))
    assert len(server.heard) <= 4 * MIN_REQUESTS  # those in flight are made by the queue, and three times by botocore


def test_size_for_which_there_is_no_memory(server: Listener, fs: CSXFileSystem) -> None:
    """It is a MemoryError that names the size, who says so, and what to do."""
    server.answer = LIES["head"]
    with pytest.raises(MemoryError, match=r"s3://bucket/a.mdl, .* 10,000,000,000,000"):
        fs.open("bucket/a.mdl", "rb").read()


def test_object_without_etag(server: Listener, fs: CSXFileSystem, tmp_path: Path) -> None:
    """A response without an ETag, which every S3 has, is a page of somebody in between, and no object."""
    server.answer = lambda heard: honest(heard, WHEN)
    reads: list[Callable[[], object]] = [
        lambda: fs.open("bucket/a.mdl", "rb").read(),
        lambda: fs.cat_file("bucket/a.mdl", start=-10),
        lambda: fs.cat(["bucket/a.mdl", "bucket/b.mdl", "bucket/c.mdl"]),
        lambda: fs.get_file("bucket/a.mdl", f"{tmp_path}/a"),
    ]
    for read in reads:
        with pytest.raises(EndpointError, match="without ETag"):
            read()
    assert not (tmp_path / "a").exists()


def test_parts_beyond_number(server: Listener, fs: CSXFileSystem) -> None:
    """A copy looks up no more parts than an object can have, whatever its ETag says; it chooses its own parts."""
    huge = {**FOUND, "ETag": f'"0-{HUGE}"'}
    copied = b"<CopyPartResult><ETag>x</ETag></CopyPartResult>"
    done = b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
    began = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"

    def answer(heard: Heard) -> Answer:
        if heard.method == "HEAD":
            return honest(heard, huge)
        if "tagging" in heard.path:
            return 200, {}, b"<Tagging><TagSet></TagSet></Tagging>"
        return 200, {}, copied if heard.method == "PUT" else began if "uploads" in heard.path else done

    server.answer = answer
    fs.cp_file("bucket/a", "bucket/b", preserve_etag=True)
    assert Counter(each.method for each in server.heard) == {"HEAD": 1, "GET": 1, "POST": 2, "PUT": 1}


@pytest.mark.parametrize("status", [300, 303, 307, 308])
@pytest.mark.parametrize("headers", [{}, {"x-amz-bucket-region": "eu-west-3"}], ids=["nowhere", "region"])
def test_redirect_to_nowhere(server: Listener, fs: CSXFileSystem, status: int, headers: dict[str, str]) -> None:
    """A redirect that does not say where to is reported at once, also of a deletion of many."""
    server.answer = lambda heard: (status, headers, b"")
    for ask in (lambda: fs.rm(["bucket/a", "bucket/b"]), lambda: fs.cat_file("bucket/c"), lambda: fs.ls("bucket/d")):
        server.heard.clear()
        with pytest.raises(OSError, match=rf"redirects to another address|was refused with {status}") as caught:
            ask()
        assert isinstance(caught.value, CSXError)
        assert max(Counter(each.path for each in server.heard).values()) <= 2


@pytest.mark.parametrize("key", ["../x/y", "a/../../z", "a/b/..", ".."])
def test_keys_that_lead_out_of_the_folder(server: Listener, fs: CSXFileSystem, tmp_path: Path, key: str) -> None:
    """Nothing is fetched, and no folder is made, where a key found in a bucket leads out of the one named."""
    when = "<LastModified>2026-01-01T00:00:00Z</LastModified>"
    entries = "".join(f"<Contents><Key>{each}</Key><Size>1000</Size>{when}</Contents>" for each in ("good", key))
    listed = f"<ListBucketResult><Name>bucket</Name>{entries}</ListBucketResult>".encode()
    server.answer = lambda heard: (200, {}, listed) if "list-type" in heard.path else honest(heard, FOUND)
    place = tmp_path / "place"
    place.mkdir()
    target = place / "in" / "here"
    for source in ("bucket", "bucket/"):
        with pytest.raises(ValueError, match=r"leads out of"):
            fs.get(source, f"{target}/", recursive=True)
    assert not list(place.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"home", "place"}


def test_key_that_begins_with_a_slash(server: Listener, fs: CSXFileSystem, tmp_path: Path) -> None:
    """It is fetched into the folder."""
    name = f"{tmp_path}/out"
    when = "<LastModified>2026-01-01T00:00:00Z</LastModified>"
    listed = f"<ListBucketResult><Contents><Key>{name}</Key><Size>1000</Size>{when}</Contents></ListBucketResult>"
    server.answer = lambda heard: (200, {}, listed.encode()) if "list-type" in heard.path else honest(heard, FOUND)
    fs.get("bucket", f"{tmp_path}/here/", recursive=True)
    assert not Path(name).exists()
    assert [each for each in tmp_path.rglob("*") if each.is_file() and (tmp_path / "here") in each.parents]
