"""Wrong or endless responses of a server soon raise a clear error: no bare KeyError, no memory, no endless loop."""

from __future__ import annotations

import contextlib
import io
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from listener import Answer, Heard, Listener, listening
from memory import little_memory
from talker import Talker, talking

from fsspec_csx.cli.main import main
from fsspec_csx.errors import EndpointError
from fsspec_csx.s3.client import response_validation
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import bounded_body

KEYS = {"key": "AKIA0000000000WXYZ", "secret": "a-secret-of-ours"}
# Of the slowest of these on a busy machine; what goes wrong takes minutes, or never ends.
SOON = 25.0
HEAD = b'<?xml version="1.0" encoding="UTF-8"?>'
WHEN = "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"


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
    made = fsspec.filesystem("s3", **KEYS, endpoint_url=server.url, use_listings_cache=False, skip_instance_cache=True)
    assert isinstance(made, CSXFileSystem)
    return made


def listed(*entries: str, more: str = "") -> Answer:
    """The first page of a listing."""
    report = f"<ListBucketResult><Name>bucket</Name>{''.join(entries)}{more}</ListBucketResult>"
    return 200, {"Content-Type": "application/xml"}, HEAD + report.encode()


def entry(key: str, size: object = 1, when: str = WHEN) -> str:
    """An object of a listing."""
    return f"<Contents><Key>{key}</Key><Size>{size}</Size>{when}</Contents>"


def on(token: str) -> str:
    """The end of a page after which another comes."""
    return f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"


def list_checkpoints(server: Listener) -> object:
    """List checkpoints on the command line, and raise what it says."""
    report = io.StringIO()
    with contextlib.redirect_stderr(report), pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEYS["key"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secret"])
        status = main(["checkpoint", "list", "s3://bucket/run", "--endpoint-url", server.url])
    assert status == 3
    assert "Traceback" not in report.getvalue()
    raise EndpointError(report.getvalue())


LISTINGS: dict[str, Callable[[CSXFileSystem, Listener], object]] = {
    "ls": lambda fs, server: fs.ls("bucket/run"),
    "find": lambda fs, server: fs.find("bucket/run"),
    "du": lambda fs, server: fs.du("bucket/run"),
    "glob": lambda fs, server: fs.glob("bucket/run/*"),
    "rm": lambda fs, server: fs.rm("bucket/run", recursive=True),
    "checkpoint_list": lambda fs, server: list_checkpoints(server),
}
PAGES: dict[str, tuple[Answer, str]] = {
    "no_key": (listed(entry("run/a"), f"<Contents><Size>1</Size>{WHEN}</Contents>"), "Contents without Key"),
    "empty_key": (listed(entry("")), "Contents without Key"),
    "no_size": (listed(f"<Contents><Key>run/a</Key>{WHEN}</Contents>"), "Contents without Size"),
    "no_number": (listed(entry("run/a", "many")), "it has an invalid number or date"),
    "negative": (listed(entry("run/a", -5)), "a Size of -5"),
    "no_date": (
        listed(entry("run/a", when="<LastModified>yesterday, or so</LastModified>")),
        "it has an invalid number or date",
    ),
    "without_date": (listed(entry("run/a", when="")), "Contents without LastModified"),
    "no_prefix": (listed("<CommonPrefixes><Wrong>run/</Wrong></CommonPrefixes>"), "CommonPrefixes without Prefix"),
    "foreign": (listed(entry("run/a"), entry("elsewhere/b")), "'elsewhere/b' in a listing of what begins with 'run/'"),
    "foreign_folder": (
        listed("<CommonPrefixes><Prefix>runs/</Prefix></CommonPrefixes>"),
        "'runs/' in a listing of what begins with 'run/'",
    ),
    "no_token": (listed(entry("run/a"), more="<IsTruncated>true</IsTruncated>"), "without NextContinuationToken"),
    "same_token": (listed(entry("run/a"), more=on("again")), "repeats itself|same next token"),
    "no_xml": ((200, {}, b"all is well"), r"500 \(the status was 200, but its body is no XML"),
    "empty": ((200, {}, b""), "a body without XML"),
    "page": (
        (200, {"Content-Type": "text/html"}, b"<!DOCTYPE html><html><body>Log in</body></html>"),
        "a web page",
    ),
    "page_of_xml": ((200, {"Content-Type": "text/html"}, b"<html><body>Log in</body></html>"), "whose root is 'html'"),
    "cut": ((200, {}, HEAD + b"<ListBucketResult><Contents><Key>run/a"), "its body is no XML, or damaged"),
    "deep": ((200, {}, HEAD + b"<ListBucketResult>" + b"<a>" * 20_000), "no XML, or damaged"),
}


# Every operation gets some of them, and one operation gets all.
ASKED = [("find", page) for page in PAGES]
ASKED += [(each, page) for each in LISTINGS if each != "find" for page in ("no_key", "foreign", "same_token", "page")]


@pytest.mark.parametrize(("operation", "page"), ASKED)
def test_listing_that_is_none(server: Listener, fs: CSXFileSystem, operation: str, page: str) -> None:
    """What is no listing is reported as such, soon, and nothing is deleted by it."""
    answer, said = PAGES[page]
    server.answer = lambda heard: answer if heard.method == "GET" else (404, {}, b"")
    began = time.monotonic()
    what = "(answered|gave an invalid S3 response to) ListObjectsV2 on s3://bucket"
    with pytest.raises(EndpointError, match=rf"(?s) {what}.*({said}).*(Check|Try again)"):
        LISTINGS[operation](fs, server)
    assert time.monotonic() - began < SOON
    assert not [one for one in server.heard if one.method in ("POST", "DELETE")]


@pytest.mark.parametrize("kind", ["tokens", "pages", "folders", "empty"])
def test_listing_without_end(server: Listener, fs: CSXFileSystem, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that come around again, or bring nothing, are followed for a while, and then are an error."""
    monkeypatch.setattr(response_validation, "_IDLE_PAGES", 5)
    count = itertools.count()

    def answer(heard: Heard) -> Answer:
        number = next(count)
        folder = "<CommonPrefixes><Prefix>run/a/</Prefix></CommonPrefixes>"
        report = {"pages": entry("run/a"), "folders": folder, "tokens": entry(f"run/{number}"), "empty": ""}[kind]
        return listed(report, more=on(str(number % 3) if kind == "tokens" else f"token-{number}"))

    server.answer = answer
    with pytest.raises(EndpointError, match="a listing that repeats itself"):
        fs.find("bucket/run")
    assert len(server.heard) == (4 if kind == "tokens" else 6 if kind == "empty" else 7)


def test_listing_of_many_pages(server: Listener, fs: CSXFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing with a few empty pages is not an endless one."""
    monkeypatch.setattr(response_validation, "_IDLE_PAGES", 5)
    count = itertools.count()

    def answer(heard: Heard) -> Answer:
        number = next(count)
        report = entry(f"run/{number:03}") if number % 4 else ""
        return listed(report, more=on(f"token-{number}") if number < 15 else "")

    server.answer = answer
    assert len(fs.find("bucket/run")) == 12


def test_listing_of_another_kind(server: Listener, fs: CSXFileSystem) -> None:
    """The response to another operation may be called as its service calls it."""
    root = "ListBucketIntelligentTieringConfigurationsOutput"
    server.answer = lambda heard: (200, {}, f"<{root}><IsTruncated>false</IsTruncated></{root}>".encode())
    found = fs.call_s3("list_bucket_intelligent_tiering_configurations", Bucket="bucket")
    assert found["IsTruncated"] is False


# -- answers that are more than they seem ------------------------------------------------------------------------------

LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
BOMB = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "lol">{LAUGHS}]>'.encode()
OPERATIONS: dict[str, Callable[[CSXFileSystem], object]] = {
    "find": lambda fs: fs.find("bucket/run"),
    "rm": lambda fs: fs.rm(["bucket/run/a", "bucket/run/b"]),
    "cp": lambda fs: fs.cp_file("bucket/run/a", "bucket/run/b"),
    "pipe_parts": lambda fs: fs.pipe_file("bucket/run/a", bytes(6 * 2**20), chunksize=5 * 2**20),
    "cat": lambda fs: fs.cat_file("bucket/run/a"),
    "pipe": lambda fs: fs.pipe_file("bucket/run/a", b"data"),
    "info": lambda fs: fs.info("bucket/run/a"),
}
FOUND = {"ETag": '"0"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


@pytest.mark.parametrize("operation", ["find", "rm", "cp", "pipe_parts"])
@pytest.mark.parametrize("kind", ["bomb", "file"])
def test_document_that_defines_entities(
    server: Listener, fs: CSXFileSystem, tmp_path: Path, operation: str, kind: str
) -> None:
    """It is refused unread, at once: nothing is made larger than it came, and no file of this machine is read."""
    (tmp_path / "secret").write_text("a-secret-of-this-machine")
    outside = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l11 SYSTEM "file://{tmp_path}/secret">]>'.encode()
    body = (BOMB if kind == "bomb" else outside) + b"<ListBucketResult><Name>&l11;</Name></ListBucketResult>"
    size = {**FOUND, "Content-Length": "1000"}
    server.answer = lambda heard: (200, size, b"") if heard.method == "HEAD" else (200, FOUND, body)
    with little_memory(32 * 2**20), pytest.raises(EndpointError, match=r"defines? entities.*Check") as caught:
        OPERATIONS[operation](fs)
    assert "a-secret-of-this-machine" not in str(caught.value)
    assert len([one for one in server.heard if one.method not in ("HEAD", "DELETE")]) == 1


@pytest.mark.parametrize("operation", ["find", "rm", "cat", "pipe", "info"])
def test_refusal_that_defines_entities(server: Listener, fs: CSXFileSystem, operation: str) -> None:
    """Of a refusal like that the status alone is read."""
    server.answer = lambda heard: (403, {}, BOMB + b"<Error><Code>&l11;</Code><Message>&l11;</Message></Error>")
    with little_memory(32 * 2**20), pytest.raises(PermissionError, match="was refused to the access key"):
        OPERATIONS[operation](fs)


def test_refusal_that_is_deep(server: Listener, fs: CSXFileSystem) -> None:
    """One that is nested without measure is an error like any other."""
    server.answer = lambda heard: (403, {}, b"<Error>" + b"<a>" * 50_000 + b"</a>" * 50_000 + b"</Error>")
    with pytest.raises(OSError, match=r"(Check|Look|Ask) "):
        fs.find("bucket/run")


# -- answers that do not end -------------------------------------------------------------------------------------------


def endless(status: str, begun: bytes, piece: bytes) -> Callable[[bytes], Iterator[bytes]]:
    """What is said by a server that never ends the body of its answers."""

    def say(head: bytes) -> Iterator[bytes]:
        yield f'HTTP/1.1 {status}\r\nETag: "0"\r\n\r\n'.encode() + begun
        while True:
            yield piece

    return say


def talked_to(talker: Talker) -> CSXFileSystem:
    """A filesystem on such a server."""
    options = {"use_listings_cache": False, "skip_instance_cache": True}
    made = fsspec.filesystem("s3", **KEYS, endpoint_url=talker.url, **options)
    assert isinstance(made, CSXFileSystem)
    return made


@pytest.mark.parametrize("operation", ["find", "pipe"])
def test_answer_without_end(operation: str) -> None:
    """A response that is no object is abandoned after 8 MiB, and not requested again."""
    with talking(endless("200 OK", b"<ListBucketResult>", entry("run/a").encode() * 500)) as talker:
        fs = talked_to(talker)
        with little_memory(96 * 2**20), pytest.raises(EndpointError, match=r"longer than 8,388,608 bytes.*Check that"):
            OPERATIONS[operation](fs)
        assert talker.requests == 1
    assert talker.said < 64 * 2**20


@pytest.mark.parametrize("operation", ["find", "cat", "pipe"])
def test_refusal_without_end(operation: str) -> None:
    """Of a refusal no more than 1 MiB is read, and its status is reported."""
    with talking(endless("403 Forbidden", b"<Error><Message>", b"no" * 2**15)) as talker:
        fs = talked_to(talker)
        with little_memory(64 * 2**20), pytest.raises(PermissionError, match="was refused to the access key"):
            OPERATIONS[operation](fs)
    assert talker.said < 64 * 2**20


@pytest.mark.parametrize("operation", ["find", "cat"])
def test_head_without_end(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Endless headers are not HTTP."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)

    def say(head: bytes) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        for number in itertools.count():
            yield b"".join(b"x-header-%d-%d: %s\r\n" % (number, n, b"x" * 1000) for n in range(50))

    with talking(say) as talker:
        fs = talked_to(talker)
        with little_memory(64 * 2**20), pytest.raises(EndpointError, match=r"(Check that|Try again)"):
            OPERATIONS[operation](fs)
        assert talker.requests <= 25


@pytest.mark.parametrize("operation", ["find", "pipe"])
def test_answer_by_the_drop(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that never pauses for long, and yet never ends, is given up after a minute; here after a second."""
    for name in ("_READ_SECONDS", "_WRITE_SECONDS"):
        monkeypatch.setattr(bounded_body, name, 1.0)

    def say(head: bytes) -> Iterator[bytes]:
        yield b'HTTP/1.1 200 OK\r\nETag: "0"\r\n\r\n<'
        while True:
            time.sleep(0.1)
            yield b" "

    with talking(say) as talker:
        fs = talked_to(talker)
        with pytest.raises(EndpointError, match="has not ended after 1 s"):
            OPERATIONS[operation](fs)
        assert talker.requests == 1
