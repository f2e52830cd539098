"""Reading responses from sockets: system calls directly on the buffers that they fill."""

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

# Bytes between two checks whether the request was given up, and the pieces of which the checksum is computed.
_STEP = 2**20


_of_thread = threading.local()


@contextlib.contextmanager
def noting_connection(note: Callable[[Any], object]) -> Iterator[None]:
    """Within a block, in this thread: call ``note`` with a connection that waits for a response, and then with None."""
    _of_thread.note = note
    try:
        yield
    finally:
        del _of_thread.note


def _note(connection: Any) -> None:
    if (note := getattr(_of_thread, "note", None)) is not None:
        note(connection)


class NotedConnection:
    """A connection that is noted while it waits for the head of a response; a base of connections of http.client."""

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
    """A connection without TLS: Python limits the time to connect, and the system that of each call after it."""

    def connect(self) -> None:
        """Connect."""
        super().connect()
        self.sock.settimeout(None)


class PlainPool(AWSHTTPConnectionPool):  # type: ignore[misc]
    """Connections without TLS."""

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
    """The body of a response that is no object data."""
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
    """Read a body directly into memory; urllib3 would copy."""
    wanted.expect(answer.status_code, answer.headers)
    stream, read = compat.raw_stream(answer), compat.tls_read(answer)
    # How many bytes came with the head; to look into an empty buffer waits for some.
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
    """Fill a buffer with records of TLS; http.client, BufferedReader and SSLSocket would run for each."""
    memory, filled = memory[: stream.length], 0
    try:
        while filled < len(memory) and (count := read(len(memory) - filled, memory[filled:])):
            filled += count
    finally:  # the bytes before an error count
        stream.length -= filled
        wanted.advance(filled)
    if not stream.length:
        stream.read(0)  # marks it as read, so that the connection is reused


def abort_connection(answer: Any) -> bool:
    """Make a system call that waits for the bytes of a response return; return whether there are more to come."""
    return shut_down(compat.socket_of(answer))


def shut_down(link: socket.socket | None) -> bool:
    """Make the system calls that wait on a socket return; return whether there was one."""
    if link is None:
        return False
    with contextlib.suppress(OSError):  # it has ended by itself
        socket.socket.shutdown(link, socket.SHUT_RDWR)  # not TLS's own, which would wait for the other side
    return True


def socket_options(seconds: float | None) -> list[tuple[int, int, Any]]:
    """Options of a connection, with a time limit of the system, so that its calls can be few and long.

    With TLS, Python keeps the time limit: OpenSSL would begin the call again.
    """
    options: list[tuple[int, int, Any]] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if seconds is not None:
        whole, fraction = divmod(seconds, 1)
        limit = struct.pack("@ll", int(whole), int(fraction * 1e6))
        options += [(socket.SOL_SOCKET, name, limit) for name in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO)]
    return options
