"""Responses on a real socket, as servers and proxies may send them: either an object's bytes or an error."""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from handshakes import Handshakes
from urllib3 import HTTPConnectionPool, Timeout
from urllib3.exceptions import HTTPError

from fsspec_csx.s3.first_bytes import FirstBytes
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.concurrency import RequestSlots
from fsspec_csx.s3.transport.exchange import socket_options
from fsspec_csx.s3.transport.failures import UnusualResponseError
from fsspec_csx.s3.transport.link import Link
from fsspec_csx.s3.transport.request_body import MemoryBody
from fsspec_csx.s3.transport.response_head import MOST_BYTES
from fsspec_csx.s3.transport.signature import SignedRequest
from fsspec_csx.s3.transport.socket_loop import SocketLoop, Steps, run_alone
from fsspec_csx.s3.transport.tls import TLSPool

HEAD = b'HTTP/1.1 200 OK\r\nETag: "a"\r\nContent-Length: 5\r\n\r\n'
GOOD = HEAD + b"hello"
NO_ETAG = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nnever"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
SHARED = False
T = TypeVar("T")


@pytest.fixture(autouse=True, params=[False, True], ids=["alone", "shared"])
def shared(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the connection shares its thread with others."""
    monkeypatch.setattr(sys.modules[__name__], "SHARED", request.param)


def run(steps: Steps[T], limit: float = 60.0) -> T:
    """Run the steps of a request, with a time limit in seconds for each wait."""
    if not SHARED:
        return run_alone(steps)
    with ThreadPoolExecutor(2) as pool:
        return SocketLoop(pool.submit, limit).run(steps).result()


class Server:
    """Answers each request with the next pieces of bytes; an empty one, or that there is none, ends the connection.

    Attributes:
        connections: the number of those that clients made.
    """

    def __init__(
        self, answers: Sequence[Sequence[bytes]], *, early: bool = False, handshakes: Handshakes | None = None
    ) -> None:
        self._answers, self._early, self._handshakes = iter(answers), early, handshakes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            link, _ = self._listener.accept()
            if not self._waiting:
                link.close()
                return
            self.connections += 1
            with contextlib.suppress(StopIteration, OSError):  # no more answers, or the client ended the connection
                self._answer(link)

    def _answer(self, link: socket.socket) -> None:
        with link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._handshakes is None:
                self._exchange(link)
                return
            with self._handshakes.wrapped(link, threading.Event()) as secure:
                secure.do_handshake()
                self._exchange(secure)

    def _exchange(self, link: socket.socket) -> None:
        while link.recv(1 if self._early else 65536):
            for piece in next(self._answers):
                if piece:
                    link.sendall(piece)
                else:
                    link.shutdown(socket.SHUT_WR)
            if self._early:
                link.shutdown(socket.SHUT_WR)
                return

    _waiting = True

    def close(self) -> None:
        """End."""
        self._waiting = False
        with socket.create_connection(("127.0.0.1", self.port)):
            pass
        self._thread.join()
        self._listener.close()


@contextmanager
def linked(*answers: Sequence[bytes], early: bool = False, limit: float = 60.0) -> Iterator[tuple[Link, Server]]:
    """A connection to a server that answers so, with a time limit in seconds for each system call."""
    server = Server(answers, early=early)
    timeout = Timeout(connect=60, read=None)
    pool = HTTPConnectionPool("127.0.0.1", server.port, timeout=timeout, socket_options=socket_options(limit))
    link = Link(pool, RequestSlots(), shares_thread=SHARED)
    try:
        yield link, server
    finally:
        link.give_back()
        pool.close()
        server.close()


def request(method: str = "GET") -> SignedRequest:
    """A request."""
    return SignedRequest(method, "http://host/key", "/key", "host", {"x": "é".encode()})


def fetched(link: Link, size: int = 5, limit: float = 60.0) -> bytes:
    """What a GET brings."""
    wanted, memory = RangeRequest(0), bytearray(size)
    wanted.add(0, 0, memoryview(memory))
    head, data = run(link.getting(request(), wanted), limit)
    assert wanted.interrupt is None
    return bytes(memory) if wanted.complete else b"%d %s" % (head.status_code, data)


def test_objects() -> None:
    """However a response is divided, its bytes are read, and the connection is used again if it may be."""
    pieces = [GOOD[place : place + 1] for place in range(len(GOOD))]
    with linked([GOOD], pieces, [INTERIM + HEAD, b"hello"], [INTERIM, GOOD]) as (link, server):
        assert [fetched(link) for _ in range(4)] == [b"hello"] * 4
        assert server.connections == 1
    closing = GOOD.replace(b"ETag", b"Connection: close\r\nETag")
    with linked([closing], [REFUSAL], [GOOD], [GOOD]) as (link, server):
        assert [fetched(link) for _ in range(4)] == [b"hello", b"403 never", b"hello", b"hello"]
        assert server.connections == 2


CHUNKED = HEAD.replace(b"Content-Length: 5", b"Transfer-Encoding: chunked")
UNTIL_THE_END = HEAD.replace(b"Content-Length: 5", b"x: y")


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        ([NO_ETAG], 1),
        ([CHUNKED + b"2;x=y\r\nhe\r", b"\n3 \r\nl", b"lo\r\n0\r\nx: y\r\n\r\n"], 2),
        ([UNTIL_THE_END + b"he", b"llo", b""], 2),
        ([UNTIL_THE_END.replace(b"/1.1", b"/1.0") + b"hello", b""], 2),
        ([GOOD.replace(b"/1.1", b"/1.0")], 2),
        ([GOOD.replace(b"/1.1", b"/1.0").replace(b"ETag", b"Connection: Keep-Alive\r\nETag")], 1),
        ([GOOD + b"more"], 2),
    ],
    ids=["no ETag", "chunked", "until the end", "HTTP/1.0", "1.0 with length", "1.0 kept", "more"],
)
def test_rare_forms(answer: Sequence[bytes], connections: int) -> None:
    """Bytes arrive in any form that HTTP has for them; a connection is used again where their end is certain."""
    with linked(answer, [GOOD]) as (link, server):
        assert fetched(link) == b"hello"
        assert fetched(link) == b"hello"
        assert server.connections == connections


@pytest.mark.parametrize(
    "answer",
    [
        [b"<html>Please log in</html>\r\n\r\n"],
        [INTERIM * 9 + GOOD],
        [b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000],
        [HEAD.replace(b"5", b"50000000000000000000000") + b"hello"],
        [CHUNKED + b"x\r\nhello\r\n0\r\n\r\n"],
    ],
    ids=["garbage", "interim", "oversize", "length", "chunk"],
)
def test_malformed(answer: Sequence[bytes]) -> None:
    """What is no response is an error, and the next request has a connection of its own."""
    with linked(answer, [GOOD]) as (link, server):
        with pytest.raises(UnusualResponseError):
            fetched(link)
        assert fetched(link) == b"hello"
        assert server.connections == 2


def test_what_follows_an_answer() -> None:
    """Bytes that come after the end of an answer are not taken for the next one."""
    size = 2 * MOST_BYTES  # so that what follows it does not come with the head
    long = HEAD.replace(b"5", b"%d" % size) + b"x" * size
    with linked([long + HEAD + b"wrong"], [GOOD]) as (link, server):
        assert fetched(link, size) == b"x" * size
        assert select.select([link._connection.sock], [], [], 60)[0]
        assert fetched(link) == b"hello"
        assert server.connections == 2


@pytest.mark.parametrize("by_pool", [True, False])
def test_what_follows_an_answer_by_tls(tmp_path: Path, by_pool: bool) -> None:
    """Decrypted bytes that were not requested are not the response to the connection's next request."""
    handshakes, size = Handshakes(tmp_path), 20_000  # of two records, the second of which has more than the body
    answer = HEAD.replace(b"5", b"%d" % size) + bytes(size) + HEAD + b"other"
    server = Server([[answer], [GOOD], [GOOD]], handshakes=handshakes)
    pool = TLSPool("127.0.0.1", server.port, cert_reqs="CERT_REQUIRED", ca_certs=str(handshakes.trusted), timeout=60)
    came, link = [], Link(pool, RequestSlots(), shares_thread=SHARED)
    for length in (size, 5, 5):
        came.append(fetched(link, length))
        if by_pool:
            link.give_back()
            link = Link(pool, RequestSlots(), shares_thread=SHARED)
    link.give_back()
    pool.close()
    server.close()
    assert came == [bytes(size), b"hello", b"hello"]
    assert server.connections == 2


def test_refusals_in_chunks() -> None:
    """What AWS refuses, it refuses by a body of chunks, which says why."""
    head = b"HTTP/1.1 503 Slow Down\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = MemoryBody([memoryview(b"data")])
    good = [head + b"5;x=y\r\n<Err", b"o\r\n2 \r\nr>\r\n0\r\n\r\n"]
    with linked(good, good, [head + b"0\r\nx: y\r\n\r\n"], [GOOD]) as (link, server):
        answer, data = run(link.putting(request("PUT"), body))
        assert (answer.status_code, data) == (503, b"<Error>")
        assert fetched(link) == b"503 <Error>"
        assert run(link.putting(request("PUT"), body))[1] == b""
        assert fetched(link) == b"hello"
        assert server.connections == 1
    sizes = [b"x\r\n", b"\r\n", b"-5\r\n", b"0x5\r\nhello", b"5_0\r\n", b"+0\r\n\r\n", b"5\nhello", b"0" * 70_000]
    for odd in (*sizes, b"5\r\nhello0\r\n\r\n", b"0\r\nno trailer\r\n\r\n", b"0\r\n" + b"x: y\r\n" * 20_000):
        with linked([head, odd]) as (link, _), pytest.raises(UnusualResponseError, match="damaged"):
            run(link.putting(request("PUT"), body))
    for cut in (REFUSAL[:-2], head + b"ffffff\r\nhe", head + b"5\r\nhe", head + b"5\r\nhello\r\n", head + b"0\r\n"):
        with linked([cut, b""]) as (link, _), pytest.raises(ConnectionError, match="ended"):
            run(link.putting(request("PUT"), body))
    old = head.replace(b"/1.1", b"/1.0") + b"0\r\n\r\n"
    closing = head.replace(b"Transfer", b"Connection: close\r\nTransfer") + b"0\r\n\r\n"
    more, whole = head + b"0\r\n\r\n" + GOOD, head + b"%x\r\n%s\r\n0\r\n\r\n" % (2**21, bytes(2**21))
    for answer in (more, whole, old, closing):
        with linked([answer], [GOOD]) as (link, server):  # the connection may have bytes left, or ends
            run(link.putting(request("PUT"), body))
            assert fetched(link) == b"hello"
            assert server.connections == 2
    entities = head + b"9\r\n<!DOCTYPE\r\n0\r\n\r\n"
    with linked([entities], [REFUSAL.replace(b"5", b"9").replace(b"never", b"<!DOCTYPE")]) as (link, _):
        assert [run(link.putting(request("PUT"), body))[1] for _ in range(2)] == [b"", b""]


def test_the_rest_without_the_size() -> None:
    """An object whose rest comes without its size is as large as its first response says."""
    size, most = 6 * 2**20, 4 * 2**20
    first = HEAD.replace(b"5", b"%d" % size) + b"x" * 1000
    rest = HEAD.replace(b"200 OK", b"206 OK").replace(b"5", b"%d" % (most - 1000))
    rest = rest.replace(b"ETag", b"Content-Range: bytes 1000-%d/*\r\nETag" % (most - 1))
    wanted = FirstBytes("object", lambda size: most)
    with linked([first, b""], [rest + b"x" * (most - 1000)]) as (link, _):
        with pytest.raises(OSError, match="ended"):
            run(link.getting(request(), wanted))
        run(link.getting(request(), wanted))
        assert (wanted.complete, wanted.cut_off, wanted.total) == (True, True, size)


def test_endless_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head, or the body of a refusal, that comes byte by byte ends after a while."""
    monkeypatch.setattr("fsspec_csx.s3.transport.link._LONGEST", -1.0)
    for begun in (b"HTTP/1.1 2", REFUSAL[:-2]):
        with linked([begun]) as (link, _), pytest.raises(TimeoutError, match="not ended"):
            run(link.putting(request("PUT"), MemoryBody([memoryview(b"data")])))


def test_success_without_the_body() -> None:
    """A server that has not taken the whole body has not stored it, whatever it says."""
    body = MemoryBody([memoryview(bytes(2**26))])
    with linked([GOOD], early=True) as (link, _), pytest.raises(OSError, match=r"ended|reset"):
        run(link.putting(request("PUT"), body))


def test_no_request_without_tls() -> None:
    """Where TLS could not begin, no request goes over the connection that was made for it."""
    server = Server([[GOOD]])
    pool = TLSPool("127.0.0.1", server.port, timeout=60, cert_reqs="CERT_REQUIRED", ca_certs="/no/such/file")
    link = Link(pool, RequestSlots(), shares_thread=SHARED)
    try:
        for _ in range(2):
            with pytest.raises(HTTPError, match="No such file"):
                fetched(link)
    finally:
        link.give_back()
        pool.close()
        server.close()


def test_not_begun() -> None:
    """Where there is no connection, nothing was sent."""
    with linked([GOOD]) as (link, server):
        assert fetched(link) == b"hello"
        assert link.began
        link._connection.close()
        link._connection.port = 1
        with pytest.raises(HTTPError):
            run(link.putting(request("PUT"), MemoryBody([])))
        assert not link.began
        link._connection.port = server.port


def test_other_lengths_and_silence() -> None:
    """Fewer or more bytes than requested, a connection that ends and one that stalls are errors."""
    for answer in (
        [HEAD + b"hel"],
        [CHUNKED + b"5\r\nhel", b""],
        [HEAD.replace(b"5", b"6") + b"hello!"],
        [b"HTTP/1.1 2"],
        [],
    ):
        with (
            linked(*([answer] if answer else []), limit=0.5) as (link, _),
            pytest.raises(OSError, match=r"ended|came|temporarily|reset|stalled") as caught,
        ):
            fetched(link, limit=0.5)
        assert not isinstance(caught.value, UnusualResponseError)


def test_given_up() -> None:
    """A request that was given up while it was connected is not sent, nor its answer waited for."""
    wanted, memory = RangeRequest(0), bytearray(5)
    wanted.add(0, 0, memoryview(memory))
    wanted.give_up()
    with linked() as (link, _), pytest.raises(OSError, match="given up"):
        run(link.getting(request(), wanted))


def test_early_answer() -> None:
    """A server that answers before it has read a body, and ends, gives its answer or an error; nothing hangs."""
    for size in (2**20, 2**22):  # sent with the head of its request, and in pieces
        body = MemoryBody([memoryview(bytes(size))])
        with linked([REFUSAL], early=True) as (link, _), contextlib.suppress(OSError):
            head, refusal = run(link.putting(request("PUT"), body))
            assert (head.status_code, len(refusal)) == (403, head.length)


def test_line_breaks() -> None:
    """No header of a request begins another one."""
    for headers in ({"x": "a\r\ny: b"}, {"x": b"a\nb"}, {"x\r": "a"}):
        with pytest.raises(ValueError, match="line break"):
            SignedRequest("GET", "http://host/key", "/key", "host", headers).head()
