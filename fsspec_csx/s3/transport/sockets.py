"""Reading responses from sockets, straight into the buffers to fill."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any

from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError

from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.bounded_body import taken_from
from fsspec_csx.s3.transport.byte_range import RangeRequest

# Bytes between two checks whether the request was given up; also the pieces in which the checksum is computed.
_STEP = 2**20


_of_thread = threading.local()


@contextlib.contextmanager
def reporting_connection(note: Callable[[Any], object]) -> Iterator[None]:
    """Within a block, in this thread, call ``note`` with a connection that waits for a response, and then with None."""
    _of_thread.note = note
    try:
        yield
    finally:
        del _of_thread.note


def _note(connection: Any) -> None:
    if (note := getattr(_of_thread, "note", None)) is not None:
        note(connection)


class NotedConnection:
    """A base class of http.client's connections that reports while it waits for the head of a response."""

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request; see ``http.client``."""
        _note(self)
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
        except BaseException:
            _note(None)
            raise

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the head of the response; see ``http.client``."""
        try:
            return super().getresponse(*args, **kwargs)  # type: ignore[misc]
        finally:
            _note(None)


class PlainConnection(NotedConnection, AWSHTTPConnection):  # type: ignore[misc]
    """A connection without TLS: Python limits the time to connect, and the system that of each later call."""

    def connect(self) -> None:
        """Connect, and then turn off Python's timeout."""
        super().connect()
        self.sock.settimeout(None)


class PlainPool(AWSHTTPConnectionPool):  # type: ignore[misc]
    """A pool of connections without TLS."""

    ConnectionCls = PlainConnection


@contextlib.contextmanager
def translate_errors(answer: Any, request: Any, wanted: RangeRequest | None = None) -> Iterator[None]:
    """Raise botocore's exceptions for errors while a response is read, and release its connection."""
    try:
        yield
    except TimeoutError as error:
        answer.raw.close()
        raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
    except (OSError, HTTPException) as error:
        answer.raw.close()
        if wanted is not None and error is wanted.failure:
            raise
        raise ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error
    except BaseException:
        answer.raw.close()
        raise
    finally:
        answer.raw.release_conn()


def read_body(answer: Any) -> bytes:
    """Return the body of a response without object data."""
    source = compat.raw_stream(answer)

    def read(most: int) -> bytes:
        piece: bytes = source.read1(most)
        if not piece and source.length:
            msg = f"The connection ended {source.length} bytes before the end of the response."
            raise OSError(msg)
        return piece

    body = taken_from(read, answer.status_code)
    if source.length == 0:
        source.read(0)  # marks it as read, so that the connection is reused
    if not source.isclosed():
        answer.raw.close()
    return body


def recv_into(wanted: RangeRequest, answer: Any) -> None:
    """Read a body directly into memory, without urllib3's copy."""
    wanted.expect(answer.status_code, answer.headers)
    stream, read = compat.raw_stream(answer), compat.tls_read(answer)
    # How many bytes were received with the head; peek would block on an empty buffer.
    early = 0 if read is None or wanted.complete or wanted.given_up else len(stream.fp.peek())
    while len(memory := wanted.next_buffer(_STEP)):
        before = wanted.filled
        if wanted.given_up:
            pass
        elif read is None or early:
            wanted.advance(stream.readinto(memory[:early] if early else memory) or 0)
            early -= min(early, wanted.filled - before)
        else:
            _read_records(wanted, memory, stream, read)
        if wanted.filled == before:
            msg = f"The connection ended after {wanted.filled} of {wanted.length} bytes."
            raise OSError(msg)


def _read_records(
    wanted: RangeRequest, memory: memoryview, stream: Any, read: Callable[[int, memoryview], int]
) -> None:
    """Fill a buffer from TLS records, without calls of http.client, BufferedReader and SSLSocket for each."""
    memory, filled = memory[: stream.length], 0
    try:
        while filled < len(memory) and (count := read(len(memory) - filled, memory[filled:])):
            filled += count
    finally:  # also count bytes received before an error
        stream.length -= filled
        wanted.advance(filled)
    if not stream.length:
        stream.read(0)  # marks it as read, so that the connection is reused


def abort_connection(answer: Any) -> bool:
    """Shut down the connection of a response; return whether more bytes were to come."""
    return shut_down(compat.socket_of(answer))


def shut_down(link: socket.socket | None) -> bool:
    """Shut down a socket, so that system calls that wait on it return; return whether there was one."""
    if link is None:
        return False
    with contextlib.suppress(OSError):  # the connection has ended already
        socket.socket.shutdown(link, socket.SHUT_RDWR)  # not that of TLS, which would wait for the peer
    return True


def socket_options(seconds: float | None) -> list[tuple[int, int, Any]]:
    """Return socket options with a timeout of the system, which makes few and long calls possible.

    With TLS, Python keeps the timeout, as OpenSSL would restart the call.
    """
    options: list[tuple[int, int, Any]] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if seconds is not None:
        whole, fraction = divmod(seconds, 1)
        limit = struct.pack("@ll", int(whole), int(fraction * 1e6))
        options += [(socket.SOL_SOCKET, name, limit) for name in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO)]
    return options
