"""Link: a connection on which requests are made one after another, directly on the socket.

http.client and urllib3 take half a millisecond of processor time for a request, and wait for the GIL at eight system
calls; a Link takes a tenth of that, and three. Requests are made in steps, so that one thread can make those of several
connections.
"""

from __future__ import annotations

import functools
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from urllib3.util.connection import is_connection_dropped

from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.bounded_body import taken_from
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.concurrency import RequestSlots
from fsspec_csx.s3.transport.failures import UnusualResponseError
from fsspec_csx.s3.transport.memory import populate
from fsspec_csx.s3.transport.request_body import LARGEST_PIECE, PIECE, RequestBody
from fsspec_csx.s3.transport.response_body import ResponseBody
from fsspec_csx.s3.transport.response_head import MOST_BYTES, ResponseHead, response_head
from fsspec_csx.s3.transport.signature import SignedRequest
from fsspec_csx.s3.transport.socket_loop import Ready, Steps
from fsspec_csx.s3.transport.tls import has_decrypted

# Bytes between two checks whether the request was given up; also the pieces in which the checksum is computed.
_STEP = 2**20
_INTERIM = 8  # the most 1xx responses before the final one
_END = b"\r\n\r\n"
# The longest that a response without object data may take after its first byte, in seconds, however steadily it comes.
_LONGEST = 60.0
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Interrupt:
    """Shuts down the connection of one request, but not once another request uses it."""

    def __init__(self, link: Any) -> None:
        # The socket to the proxy, if the connection has TLS within TLS.
        self._socket: socket.socket | None = getattr(link, "socket", link)
        self._lock = threading.Lock()

    def __call__(self) -> bool:
        """Make system calls that wait on the connection return, if the request still runs; return whether it does."""
        with self._lock:
            if self._socket is None:
                return False
            with suppress(OSError):  # the connection has ended already
                # Not the method of TLS, which would wait for the peer.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return True

    def release(self) -> None:
        """Note that the request has ended: the connection may serve another one."""
        with self._lock:
            self._socket = None


class Link:
    """A connection from a pool of urllib3, used directly.

    Args:
        pool: makes connections.
        slots: records the bytes moved and the response times.
        shares_thread: whether the socket does not block, as other connections use the same thread.
        forwarded: whether a proxy passes on the requests, rather than the bytes of the connection.

    Attributes:
        pool: the same.
        began: whether bytes of the last request may have been sent.
        answered: whether the head of its response has come.
        reached_proxy: whether the last connection that failed had a proxy, and failed after that was reached.
    """

    def __init__(self, pool: Any, slots: RequestSlots, *, shares_thread: bool = False, forwarded: bool = False) -> None:
        self.began = self.answered = self.reached_proxy = False
        self._shared, self._forwarded = shares_thread, forwarded
        self._until = 0.0
        self.pool, self._slots = pool, slots
        self._connection = compat.take_connection(pool)
        self._socket: Any = None
        self._poll: Any = None
        self._store = bytearray(MOST_BYTES)
        self._view = memoryview(self._store)
        self._early = self._view[:0]  # bytes of a body that were received with its head

    def give_back(self) -> None:
        """Return the connection to the pool."""
        if self._shared and (used := self._connection.sock) is not None:
            compat.set_read_timeout(self.pool, used)
        compat.give_connection_back(self.pool, self._connection)

    def getting(self, request: SignedRequest, wanted: RangeRequest) -> Steps[tuple[ResponseHead, bytes]]:
        """Request a range and fill its memory; return the head of the response, and the body if it is an error.

        Raises:
            UnusualResponseError: an OSError, if the response is malformed.
        """
        wanted.moved = self._slots.moved
        try:
            yield from self._connect()
            with self._connected() as wanted.interrupt:
                if wanted.given_up:  # before wanted.interrupt was set
                    msg = "The request was given up."
                    raise OSError(msg)
                began = time.monotonic()
                yield from self._send(self._written(request))
                head, data = (yield from self._head(began)), b""
                if head.status_code >= 300:
                    data = yield from self._body(head)
                else:
                    wanted.expect(head.status_code, head.headers)
                    yield from self._fill(wanted, head)
                if wanted.cut_off or not head.reusable:
                    self._connection.close()
            return head, data
        finally:
            wanted.interrupt = None

    def putting(self, request: SignedRequest, body: RequestBody) -> Steps[tuple[ResponseHead, bytes]]:
        """Send a body, and return the head and the body of the response.

        Raises:
            UnusualResponseError: an OSError, if the response is malformed.
        """
        yield from self._connect()
        try:
            with self._connected() as body.interrupt:
                body.sent, sent, cut = 0, time.monotonic(), False
                try:
                    if len(body) <= _STEP:
                        yield from self._send(b"".join((self._written(request), *body.pieces(_STEP))))
                        self._note_sent(body, len(body))
                    else:
                        yield from self._send(self._written(request))
                        for memory in body.pieces(PIECE, LARGEST_PIECE):
                            sent = time.monotonic()  # before it is sent, as the server may answer meanwhile
                            yield from self._send(memory)
                            self._note_sent(body, len(memory))
                except (BrokenPipeError, ConnectionResetError):
                    cut = True  # the server may have answered before it received the whole body
                head = yield from self._head(sent)
                if cut and head.status_code < 300:
                    msg = "The connection ended before the whole body was sent."
                    raise ConnectionError(msg)
                data = yield from self._body(head)
                if cut or not head.reusable:
                    self._connection.close()
                return head, data
        finally:
            body.interrupt = None

    def _note_sent(self, body: RequestBody, count: int) -> None:
        body.sent += count
        self._slots.moved(count)

    def _written(self, request: SignedRequest) -> bytes:
        """Return the head of a request."""
        if self._forwarded:
            target = f"{request.url.partition(':')[0]}://{request.host}{request.target}"
            request = replace(request, target=target, headers={**request.headers, **self.pool.proxy_headers})
        return request.head()

    def _body(self, head: ResponseHead) -> Steps[bytes]:
        """Return the body of a response without object data."""
        if head.length == 0:
            return b""

        def body() -> bytes:
            source = ResponseBody(head, self._early, self._receive)
            found = taken_from(source.read, head.status_code)
            if not source.exact:
                self._connection.close()
            return found

        return (yield from self._blocking(body))  # type: ignore[no-any-return]

    def _blocking(self, function: Callable[[], Any]) -> Steps[Any]:
        """Call a function that reads from the socket, which blocks meanwhile."""
        if self._shared:
            compat.set_read_timeout(self.pool, self._socket)
        result = yield function
        if self._shared and self._connection.sock is not None:
            self._socket.settimeout(0)
        return result

    @contextmanager
    def _connected(self) -> Iterator[Interrupt]:
        """Use the connection in a block; an error in it closes the connection."""
        self.began = True
        interrupt = Interrupt(self._socket)
        try:
            yield interrupt
        except BaseException as error:
            self._connection.close()
            if isinstance(error, (TimeoutError, BlockingIOError)):  # the timeout of Python, or of the system
                self._slots.throttled()
                compat.close_idle(self.pool)  # if the server has vanished, each would cost another time limit
            raise
        finally:
            interrupt.release()

    def _connect(self) -> Steps[None]:
        """Connect, unless the connection can be used; not if data waits, which cannot answer the next request."""
        self.began = self.answered = False
        used = self._connection.sock
        if used is not None and used is self._socket:
            if not self._poll.poll(0) and not has_decrypted(used):
                return
            self._connection.close()
        elif is_connection_dropped(self._connection) or has_decrypted(used):
            self._connection.close()
        if self._connection.sock is None:
            yield self._open
        else:
            self._open()

    def _open(self) -> None:
        try:
            self._socket = compat.connected_socket(self.pool, self._connection, forwarded=self._forwarded)
        except BaseException:
            self.reached_proxy = getattr(self._connection, "has_connected_to_proxy", self.pool.proxy is not None)
            self._connection.close()  # it may have a socket without TLS
            raise
        if self._shared:
            self._socket.settimeout(0)
        self._poll = select.poll()  # kept, as urllib3 makes another for each look
        self._poll.register(self._socket, select.POLLIN)

    def _send(self, data: bytes | memoryview) -> Steps[None]:
        if not self._shared:
            self._socket.sendall(data)
            return
        write, rest = compat.socket_write(self._socket), memoryview(data)
        while rest:
            try:
                rest = rest[write(rest) :]
            except _WOULD_BLOCK as error:
                yield self._ready(error, select.POLLOUT)

    def _ready(self, error: OSError, event: int) -> Ready:
        """Return what to wait for; raise the error of a socket that blocks, as it is that of the time limit."""
        if not self._shared:
            raise error
        if isinstance(error, ssl.SSLError):  # TLS may have to send to receive, and to receive to send
            event = select.POLLIN if isinstance(error, ssl.SSLWantReadError) else select.POLLOUT
        return Ready(self._socket, event)

    def _receive(self, memory: memoryview) -> int:
        """Receive some bytes of a head or of a body without object data."""
        if time.monotonic() > self._until:
            msg = f"A response has not ended after {_LONGEST:.0f} s."
            raise TimeoutError(msg)
        count: int = self._socket.recv_into(memory)
        self._until = min(self._until, time.monotonic() + _LONGEST)
        return count

    def _head(self, sent: float) -> Steps[ResponseHead]:
        begin = filled = 0
        if self._shared:
            yield Ready(self._socket, select.POLLIN)
        for _ in range(_INTERIM):
            self._until = float("inf")
            while (end := self._store.find(_END, begin, filled)) < 0:
                if filled == MOST_BYTES:
                    msg = f"its head has more than {MOST_BYTES:,} bytes"
                    raise UnusualResponseError(msg)
                try:
                    count = self._receive(self._view[filled:])
                except _WOULD_BLOCK as error:
                    yield self._ready(error, select.POLLIN)
                    continue
                if not count:
                    msg = "The connection ended before the head of a response."
                    raise ConnectionError(msg)
                filled += count
            head = response_head(bytes(self._view[begin:end]))
            begin = end + len(_END)
            if head.status_code >= 200:
                break
        else:
            msg = f"more than {_INTERIM} others announced it"
            raise UnusualResponseError(msg)
        self.answered = True
        self._slots.answered(time.monotonic() - sent, head.status_code)
        self._early = self._view[begin:filled]
        if head.length is not None and len(self._early) > head.length:  # bytes that answer no request
            return replace(head, reusable=False)
        return head

    def _fill(self, wanted: RangeRequest, head: ResponseHead) -> Steps[None]:
        if head.length is None:
            yield from self._blocking(functools.partial(self._fill_decoded, wanted, head))
            return
        if head.length < wanted.length - wanted.filled:
            msg = f"{head.length} bytes came where {wanted.length - wanted.filled} were due."
            raise ConnectionError(msg)
        read = compat.socket_read(self._socket)
        while len(memory := wanted.next_buffer(_STEP)):
            populate(memory)
            filled = min(len(self._early), len(memory))
            memory[:filled], self._early = self._early[:filled], self._early[filled:]
            try:
                while filled < len(memory):
                    try:
                        count = read(len(memory) - filled, memory[filled:])
                    except _WOULD_BLOCK as error:
                        yield self._ready(error, select.POLLIN)
                        continue
                    if not count:
                        break
                    filled += count
            finally:  # also count bytes received before an error
                wanted.advance(filled)
            _check(wanted, arrived=filled == len(memory))

    def _fill_decoded(self, wanted: RangeRequest, head: ResponseHead) -> None:
        """Fill memory from a response in chunks, or one that ends with the connection."""
        reader = ResponseBody(head, self._early, self._socket.recv_into)
        while len(memory := wanted.next_buffer(_STEP)):
            filled = reader.readinto(memory)
            wanted.advance(filled)
            if wanted.unsized and not wanted.given_up and (not filled or wanted.complete):
                wanted.end_body(whole=head.chunked and not reader.read(1))
            else:
                _check(wanted, arrived=filled > 0)
        self._connection.close()  # not all of the body may have been read


def _check(wanted: RangeRequest, *, arrived: bool) -> None:
    if not arrived or (wanted.given_up and not wanted.complete):
        msg = f"The connection ended after {wanted.filled} of {wanted.length} bytes."
        raise ConnectionError(msg)
