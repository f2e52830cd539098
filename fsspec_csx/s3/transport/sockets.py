"""What the threads of a transfer do with a connection: the system's own calls, on the memory that they fill."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError

from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.bounded_body import taken_from
from fsspec_csx.s3.transport.byte_range import RangeRequest

# What one call of the system may fill: between two, it is seen whether the bytes are still wanted.
_STEP = 2**20


class PlainConnection(AWSHTTPConnection):  # type: ignore[misc]
    """A connection without TLS: Python limits the time to connect, and the system that of each later call."""

    def connect(self) -> None:
        """Connect."""
        super().connect()
        self.sock.settimeout(None)


class PlainPool(AWSHTTPConnectionPool):  # type: ignore[misc]
    """Connections without TLS."""

    ConnectionCls = PlainConnection


@contextlib.contextmanager
def translate_errors(answer: Any, request: Any, wanted: RangeRequest | None = None) -> Iterator[None]:
    """Tell what goes wrong while an answer is read as botocore does, and give its connection back."""
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
    """The body of an answer that is no object."""
    source = compat.raw_stream(answer)

    def read(most: int) -> bytes:
        piece: bytes = source.read1(most)
        if not piece and source.length:
            msg = f"The connection ended {source.length} bytes before the end of the answer."
            raise OSError(msg)
        return piece

    body = taken_from(read, answer.status_code)
    if source.length == 0:
        source.read(0)  # lets it know that it is at the end, so that the connection can be used again
    if not source.isclosed():
        answer.raw.close()
    return body


def recv_into(wanted: RangeRequest, answer: Any) -> None:
    """Read a body straight into memory, by the system's own calls on it: urllib3 would copy."""
    wanted.expect(answer.status_code, answer.headers)
    while len(memory := wanted.next_buffer(_STEP)):
        count = 0 if wanted.given_up else compat.raw_stream(answer).readinto(memory)
        if not count:
            msg = f"The connection ended after {wanted.filled} of {wanted.length} bytes."
            raise OSError(msg)
        wanted.advance(count)


def abort_connection(source: Any) -> None:
    """Let a call of the system that waits for bytes return."""
    link = getattr(source.connection, "sock", None)
    if link is not None:
        with contextlib.suppress(OSError):  # it has ended by itself
            socket.socket.shutdown(link, socket.SHUT_RDWR)  # not TLS's own, which would wait for the other side


def socket_options(seconds: float | None) -> list[tuple[int, int, Any]]:
    """Options of a connection; with a time limit that the system keeps, by which its calls need not be many and short.

    Those of a connection by TLS are many in any case, and Python keeps the time limit.
    """
    options: list[tuple[int, int, Any]] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if seconds is not None:
        whole, fraction = divmod(seconds, 1)
        limit = struct.pack("@ll", int(whole), int(fraction * 1e6))
        options += [(socket.SOL_SOCKET, name, limit) for name in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO)]
    return options
