"""A proxy between a client and the real server, which records the requests and injects faults by rules.

It leaves the header ``Host`` unchanged, so that signatures stay valid. It is also an HTTP proxy for http endpoints. It
can speak TLS with clients, but not with the server.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import fsspec
import pytest
from answers import s3_error
from handshakes import Handshakes, Oddity

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

Answer = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""

_PIECE = 64 * 1024
_STALLED_SECONDS = 30.0
_LAST_CHUNK = b"0\r\n"  # its beginning
# As long as its header says, but not encrypted by a peer.
_GARBAGE = b"\x17\x03\x03\x00\x40" + bytes(range(64))


@dataclass
class Request:
    """A request that the proxy received.

    Attributes:
        method: such as GET.
        path: without the query, as it was sent.
        query: what follows the question mark.
        headers: by names in lower case.
        began: when the head of the request had arrived; in seconds of ``time.monotonic``.
        ended: when the end of the response was passed on, or the connection was closed; 0 before that.
        body: bytes of the request's body that were passed on, or received.
        status: of the response; 0 if there was none.
        answered: headers of the response, by names in lower case.
        sent: bytes of the response's body that were passed on.
        heard: whether the server's response, to a request that it got once, was passed on completely.

    All this is recorded before the client receives it, as a test may look at it immediately afterwards.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    body: int = 0
    status: int = 0
    answered: Mapping[str, str] = field(default_factory=dict)
    sent: int = 0
    heard: bool = False

    @property
    def span(self) -> tuple[int, int] | None:
        """The requested range, as positions of the first byte and behind the last; None for all."""
        first, hyphen, last = self.headers.get("range", "").removeprefix("bytes=").partition("-")
        return (int(first), int(last) + 1) if hyphen else None

    @contextmanager
    def passed_on(self, size: int, *, end: bool, whole: bool) -> Iterator[None]:
        """Record bytes of the response as sent, unless the block fails."""
        self.sent += size
        if end:
            self.ended, self.heard = time.monotonic(), whole
        try:
            yield
        except OSError:
            self.sent -= size
            self.heard = False
            raise


@dataclass
class Fault:
    """A fault, and the requests that it affects: ``times`` of those that match, after the first ``skip``.

    Positions are in bytes of a body, or a share of them if they are a float. "up" is from the client to the server,
    "down" the way back.

    Attributes:
        method: of the requests that fit; empty for any.
        query: what their query contains, such as ``partNumber=2``.
        when: what else they must be.
        skip: how many of them pass unharmed before.
        times: how many of them are harmed.
        before: is called before a request is passed on.
        delay: seconds to wait before a request is passed on.
        answer: what is answered in the server's place.
        cut_up: after so many bytes the connections are broken off.
        cut_down: likewise; at 0 the server has done what was asked, and the client hears nothing.
        stall_up: after so many bytes nothing more is passed on, and the connections stay open.
        stall_down: likewise.
        begun: is called when the first bytes of the answer's body were passed on.
        rate: bytes of a body that are passed on in a second, either way; 0 for as many as come.
        flip_up: position of a byte of which one bit is inverted.
        flip_down: likewise.
        twice: whether the server is sent the request two times; its second answer is passed on.
        shorten: bytes that are missing at the end of the answer's body, while its Content-Length fits what is left.
        status: takes the place of the answer's own.
        headers: take the place of the answer's own.
        garbage: after so many bytes of the answer's body come some that are none of TLS's.
        resets: in place of any answer so many connections are reset: this one, and those that come next.
        odd: in place of any answer the connection is broken off, and the next handshakes of TLS are like this.
        closes: whether the connection is closed after the answer, which does not say so.
        after: is called when the answer was passed on, or the connections are about to be broken off.
        done: how many requests were harmed so far.
    """

    method: str = ""
    query: str = ""
    when: Callable[[Request], bool] = lambda request: True
    skip: int = 0
    times: int = 1
    before: Callable[[], object] = lambda: None
    delay: float = 0.0
    answer: Answer | None = None
    cut_up: float | None = None
    cut_down: float | None = None
    stall_up: float | None = None
    stall_down: float | None = None
    begun: Callable[[], object] = lambda: None
    rate: float = 0.0
    flip_up: float | None = None
    flip_down: float | None = None
    twice: bool = False
    shorten: int = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    garbage: float | None = None
    resets: int = 0
    odd: Sequence[Oddity] = ()
    closes: bool = False
    after: Callable[[], object] = lambda: None
    done: int = 0

    def fits(self, request: Request) -> bool:
        """Whether a request matches."""
        return self.method in ("", request.method) and self.query in request.query and self.when(request)


class FaultProxy:
    """Passes requests on to a server.

    Args:
        url: of the server.
        handshakes: by which clients are greeted; None to speak no TLS.

    Attributes:
        handshakes: the same.
        url: what clients are given in place of the server's.
        faults: the rules; the first that fits a request and is not used up counts. May be changed at any time.
        requests: what came, in order.
        resets: how many connections are yet to be reset as they come.
        vanished: the connections of which nothing more is answered, while they stay open.
    """

    def __init__(self, url: str, handshakes: Handshakes | None = None) -> None:
        target = urlsplit(url)
        self._target = (target.hostname, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self.resets = 0
        self.handshakes = handshakes
        self.url = f"http{'s' if handshakes else ''}://127.0.0.1:{self._listener.getsockname()[1]}"
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.vanished: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def made(self, method: str = "", query: str = "") -> list[Request]:
        """The requests of a method, whose query contains something."""
        return [one for one in self.requests if method in ("", one.method) and query in one.query]

    def vanish(self) -> None:
        """Answer no more on the connections that there are, as a server does whose machine has failed."""
        self.vanished.update(self._sockets)

    def close(self) -> None:
        """Close all connections, and end."""
        self._ended.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for one in list(self._sockets):
            _break_off(one)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.resets:
                    self.resets -= 1
                    _to_be_reset(client)
                    client.close()
                    continue
                self._sockets.append(client)
                self._threads.append(threading.Thread(target=self._serve, args=(client,)))
                self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        """All requests of a connection, until one side ends it or a fault does."""
        with (
            suppress(OSError, _BrokenOffError),
            self._greeted(client) as client,
            socket.create_connection(self._target) as server,
        ):
            self._sockets.append(server)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a head and its body are sent one by one
            with client.makefile("rb") as incoming, server.makefile("rb") as answers:
                while self._exchange(client, incoming, server, answers):
                    pass
                _break_off(client)

    def _greeted(self, client: socket.socket) -> socket.socket:
        """The connection after the handshake."""
        if self.handshakes is None:
            return client
        wrapped = self.handshakes.wrapped(client, self._ended)
        self._sockets.append(wrapped)
        try:
            wrapped.do_handshake()
        except OSError:
            wrapped.close()
            raise
        self.handshakes.resumed.append(bool(wrapped.session_reused))
        return wrapped

    def _exchange(self, client: socket.socket, incoming: BinaryIO, server: socket.socket, answers: BinaryIO) -> bool:
        """One request and its answer; whether another may follow."""
        line, headers = _head(incoming)
        if not line:
            return False
        method, target, version = line.split(" ")
        url = urlsplit(target)
        request = Request(method, url.path, url.query, _named(headers))
        fault = self._recorded(request)
        if client in self.vanished:
            self._ended.wait(_STALLED_SECONDS)
            raise _BrokenOffError
        try:
            fault.before()
            if fault.resets:
                self.resets += fault.resets - 1
                _to_be_reset(client)
                raise _BrokenOffError
            if fault.odd and self.handshakes:
                self.handshakes.next.extend(fault.odd)
                raise _BrokenOffError
            self._ended.wait(fault.delay)
            if request.headers.get("expect"):
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            kept = [each for each in headers if each[0].lower() != "expect"]
            origin = url._replace(scheme="", netloc="").geturl()
            sink = None if fault.answer else server
            head = _joined(f"{method} {origin} {version}", kept)
            body = self._harmed(_body(incoming, request.headers), fault, request.headers, up=True)
            if fault.twice:
                body = iter([self._delivered(method, head, b"".join(body))])
            _send(sink, head)
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered, and read no further
                for piece in body:
                    request.body += len(piece)
                    _send(sink, piece)
            return self._answered(request, fault, client, answers) and not fault.closes
        finally:
            request.ended = request.ended or time.monotonic()
            fault.after()

    def _delivered(self, method: str, head: bytes, body: bytes) -> bytes:
        """Send a request on a separate connection, and return its body after the response."""
        with socket.create_connection(self._target) as server, server.makefile("rb") as answers:
            server.sendall(head + body)
            line, headers = _head(answers)
            if method != "HEAD" and line.split(" ")[1:2] not in (["204"], ["304"]):
                for _ in _body(answers, _named(headers)):
                    pass
        return body

    def _answered(self, request: Request, fault: Fault, client: socket.socket, answers: BinaryIO) -> bool:
        if fault.answer:
            request.status, report, body = fault.answer
            request.answered = {**report, "Content-Length": str(len(body))}
            body = b"" if request.method == "HEAD" else body
            request.ended = time.monotonic()
            client.sendall(_joined(f"HTTP/1.1 {request.status} Told", list(request.answered.items())) + body)
            return True
        if fault.cut_down == 0:
            _head(answers)
            return False
        line, headers = _head(answers)
        if not line:
            return False
        version, status, reason = line.split(" ", 2)
        request.status = fault.status or int(status)
        request.answered = _named(headers)
        length = max(0, int(request.answered.get("content-length", 0)) - fault.shorten)
        changed = {name.lower(): value for name, value in fault.headers.items()}
        if fault.shorten:
            changed["content-length"] = str(length)
        kept = [each for each in headers if each[0].lower() not in changed] + list(changed.items())
        chunked = "transfer-encoding" in request.answered
        pieces = self._harmed(_body(answers, request.answered), fault, request.answered, up=False)
        if request.method == "HEAD" or int(status) in (204, 304):
            length, chunked, pieces = 0, False, iter(())
        whole = not fault.twice and fault.garbage is None
        with request.passed_on(0, end=not length and not chunked, whole=whole):
            client.sendall(_joined(f"{version} {request.status} {reason}", kept))
        spoilt = _place(fault.garbage, length)
        for piece in pieces:
            allowed = piece[: length - request.sent] if fault.shorten else piece
            end = piece.startswith(_LAST_CHUNK) if chunked else request.sent + len(allowed) == length
            if spoilt is not None and request.sent + len(allowed) >= spoilt:
                socket.socket.sendall(client, _GARBAGE)  # bypasses TLS, if it is used
                spoilt = None
            first = not request.sent
            with request.passed_on(len(allowed), end=end, whole=whole):
                client.sendall(allowed)
            if first:
                fault.begun()
        return request.answered.get("connection", "").lower() != "close"

    def _recorded(self, request: Request) -> Fault:
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times and fault.fits(request):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    fault.done += 1
                    return fault
        return Fault()

    def _harmed(
        self, pieces: Iterator[bytes], fault: Fault, headers: Mapping[str, str], *, up: bool
    ) -> Iterator[bytes]:
        """A body as the other side receives it."""
        size = int(headers.get("content-length", 0))
        upwards = (fault.cut_up, fault.stall_up, fault.flip_up)
        downwards = (fault.cut_down, fault.stall_down, fault.flip_down)
        cut, stall, flip = (_place(each, size) for each in (upwards if up else downwards))
        end = cut if cut is not None else stall
        position = 0
        for piece in pieces:
            first, position = position, position + len(piece)
            if flip is not None and first <= flip < position:
                piece = piece[: flip - first] + bytes([piece[flip - first] ^ 1]) + piece[flip - first + 1 :]
            if end is not None and position >= end:
                yield piece[: end - first]
                if cut is None:
                    self._ended.wait(_STALLED_SECONDS)
                raise _BrokenOffError
            if fault.rate:
                self._ended.wait(len(piece) / fault.rate)
            yield piece


class _BrokenOffError(Exception):
    """A connection was closed on purpose, or by the other side before a message was complete."""


@contextmanager
def fault_proxy(url: str, handshakes: Handshakes | None = None) -> Iterator[FaultProxy]:
    """Yield a proxy before the server at this URL."""
    proxy = FaultProxy(url, handshakes)
    try:
        yield proxy
    finally:
        proxy.close()


@contextmanager
def proxy_by(scheme: str, server: LocalS3, folder: Path) -> Iterator[FaultProxy]:
    """Yield a proxy before the server; with TLS, its certificate is in the folder, and trusted within the block."""
    handshakes = Handshakes(folder) if scheme == "https" else None
    with pytest.MonkeyPatch.context() as patch, fault_proxy(server.endpoint_url, handshakes) as proxy:
        if handshakes:
            patch.setenv("AWS_CA_BUNDLE", str(handshakes.trusted))
        yield proxy


def through(proxy: FaultProxy, server: LocalS3, **options: Any) -> CSXFileSystem:
    """A separate filesystem that reaches the server through the proxy, with all permissions."""
    options = {**server.storage_options(), "endpoint_url": proxy.url, "use_listings_cache": False, **options}
    made = fsspec.filesystem("s3", skip_instance_cache=True, **options)
    assert isinstance(made, CSXFileSystem)
    return made


def error_answer(status: int, code: str, headers: Mapping[str, str] | None = None) -> Answer:
    """A response of S3 that refuses a request."""
    return status, {"Content-Type": "application/xml", **(headers or {})}, s3_error(code, f"This is {code}")


def _head(stream: BinaryIO) -> tuple[str, list[tuple[str, str]]]:
    """The first line of a request or a response, and its headers; an empty line at the end of the connection."""
    line = stream.readline().decode("latin-1").rstrip("\r\n")
    headers = []
    while line and (header := stream.readline().decode("latin-1").rstrip("\r\n")):
        name, _, value = header.partition(":")
        headers.append((name, value.strip()))
    return line, headers


def _named(headers: list[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def _joined(line: str, headers: list[tuple[str, str]]) -> bytes:
    lines = [line, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _body(stream: BinaryIO, headers: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes of a body, as they are sent.

    https://www.rfc-editor.org/rfc/rfc9112#name-message-body-length
    """
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((line := stream.readline()).split(b";")[0], 16):
            yield line
            yield from _exactly(stream, size + 2)
        end = line
        while line.strip():
            end += (line := stream.readline())
        yield end
        return
    yield from _exactly(stream, int(headers.get("content-length", 0)))


def _exactly(stream: BinaryIO, size: int) -> Iterator[bytes]:
    while size:
        piece = stream.read1(min(size, _PIECE))  # type: ignore[attr-defined]
        if not piece:
            raise _BrokenOffError
        yield piece
        size -= len(piece)


def _place(position: float | None, size: int) -> int | None:
    """A position in a body of this many bytes."""
    return int(position * size) if isinstance(position, float) else position


def _send(sink: socket.socket | None, data: bytes) -> None:
    if sink is not None:
        sink.sendall(data)


def _break_off(one: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(one, socket.SHUT_RDWR)  # not TLS's own, which another thread may be about to use


def _to_be_reset(one: socket.socket) -> None:
    """Let the other side see a failure when the connection is closed."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
