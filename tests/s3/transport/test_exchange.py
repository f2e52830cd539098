"""Requests of botocore on sockets: every form of a response is read, and an invalid one is reported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from talker import talking

from fsspec_csx import errors
from fsspec_csx.s3.filesystem import CSXFileSystem

RANGE = b"206 Partial Content\r\nContent-Range: bytes 0-4/9"
STORED = b"200 OK"
REFUSED = b"<Error><Code>AccessDenied</Code><Message>Not today</Message></Error>"


def filesystem(url: str) -> CSXFileSystem:
    """A filesystem at a store."""
    return CSXFileSystem(endpoint_url=url, key="key", secret="a-secret", skip_instance_cache=True)


def in_forms(status: bytes, body: bytes) -> Iterator[bytes]:
    """Yield a response in all forms of HTTP."""
    begin = status + b'\r\nETag: "e"\r\n'
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:2], body[2:]) if part)
    yield b"HTTP/1.1 %sContent-Length: %d\r\n\r\n%s" % (begin, len(body), body)
    yield b"HTTP/1.0 %sContent-Length: %d\r\n\r\n%s" % (begin, len(body), body)
    yield b"HTTP/1.1 %sTransfer-Encoding: chunked\r\n\r\n%s0\r\n\r\n" % (begin, chunks)
    yield b"HTTP/1.1 %sConnection: close\r\n\r\n%s" % (begin, body)
    yield b"HTTP/1.0 %s\r\n%s" % (begin, body)


def test_forms_of_responses() -> None:
    """Ranges are read, objects written and refusals understood in each form."""
    for read, stored, refused in zip(
        in_forms(RANGE, b"hello"), in_forms(STORED, b""), in_forms(b"403 Forbidden", REFUSED), strict=True
    ):
        heads: list[bytes] = []

        def say(
            head: bytes,
            read: bytes = read,
            stored: bytes = stored,
            refused: bytes = refused,
            heads: list[bytes] = heads,
        ) -> list[bytes]:
            heads.append(head)
            return [refused if b"/refused" in head else read if head.startswith(b"GET") else stored]

        with talking(say) as talker:
            fs = filesystem(talker.url)
            assert fs.cat_file("bucket/a key", start=0, end=5) == b"hello"
            fs.pipe_file("bucket/key", b"data")
            for write in (True, False):
                with pytest.raises(PermissionError, match="Not today"):
                    fs.pipe_file("bucket/refused", b"data") if write else fs.cat_file("bucket/refused", start=0, end=5)
        for head in heads:
            assert head.lower().count(b"\r\nhost: " + talker.url.partition("//")[2].encode()) == 1
            assert head.count(b"Accept-Encoding: identity") == 1
            assert head.count(b"Content-Length: 4\r\n") == head.startswith(b"PUT")
            assert b"Transfer-Encoding" not in head
        assert heads[0].startswith(b"GET /bucket/a%20key HTTP/1.1\r\n")


def test_no_response(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an invalid response the request is repeated, and then raises an error that describes the response."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    for said, reason in (
        (b"220 mail.example.com ESMTP\r\n\r\n", "its head has an invalid status line"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "its head has content-length twice",
        ),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000, "its head has more than 65,536 bytes"),
        (b"HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n" % RANGE, "its body is damaged"),
    ):
        with talking(lambda head, said=said: [said]) as talker:
            fs = filesystem(talker.url)
            fs.retries = 1  # rounds of attempts
            for write in (True, False):
                match = f"gave an invalid S3 response to {'PutObject' if write else 'GetObject'} on.*: {reason}"
                with pytest.raises(errors.EndpointError, match=match):
                    fs.pipe_file("bucket/key", b"data") if write else fs.cat_file("bucket/key", start=0, end=5)
            assert talker.requests > 2


def test_hosts_of_several_threads() -> None:
    """A connection leads to the requested host, also if another thread requests another one meanwhile."""
    with talking(lambda head: in_forms(b"404 Not Found", b"")) as talker:
        fs = filesystem(talker.url)
        with pytest.raises(FileNotFoundError):
            fs.cat_file("bucket/key", start=0, end=5)
    exchange = fs.transfer.exchange

    exchange.link("http://other.example/key").give_back()
    other = exchange._latest

    class Place(str):
        def __eq__(self, place: object) -> bool:
            exchange._latest = other  # as another thread may do
            return str(self) == str(place)

        __hash__ = str.__hash__

    exchange.link("http://first.example/key").give_back()
    exchange._latest = Place(exchange._latest[0]), *exchange._latest[1:]
    link = exchange.link("http://first.example/key")
    link.give_back()
    assert link.pool.host == "first.example"


def test_range_of_another_response() -> None:
    """A whole object with the Content-Range of a part, as of a cache that mixes responses, is read whole."""
    said = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 9\r\n\r\nhello all'
    with talking(lambda head: [said]) as talker:
        assert filesystem(talker.url).cat_file("bucket/key") == b"hello all"
