"""TLS connections: records go between OpenSSL and the caller's memory with no other code between.

A record has 16 KiB. By http.client, BufferedReader and SSLSocket, each takes six Python functions, and the threads of
the other connections wait for the interpreter's lock meanwhile.
"""

from __future__ import annotations

import os
import ssl
import threading
from typing import Any
from weakref import WeakKeyDictionary

from botocore.awsrequest import AWSHTTPSConnection, AWSHTTPSConnectionPool

from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.sockets import NotedConnection


class _Shared:
    """What the connections of one ``SSLContext`` share.

    Attributes:
        loading: is held while certificates are loaded.
        authorities: the file of certificates that was loaded, with its time and size.
        sessions: the last session of each host.
    """

    def __init__(self) -> None:
        self.loading = threading.Lock()
        self.authorities: tuple[Any, ...] = ()
        self.sessions: dict[str | None, ssl.SSLSession] = {}


_shared: WeakKeyDictionary[ssl.SSLContext, _Shared] = WeakKeyDictionary()


def _shared_by(context: ssl.SSLContext) -> _Shared:
    return _shared.setdefault(context, _Shared())


class TLSSocket(ssl.SSLSocket):
    """A client's socket that resumes the last session with its host, and sends and receives without a copy."""

    _remembered = False

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands: short if the server knows the session."""
        sessions = _shared_by(self.context).sessions
        if session := sessions.get(self.server_hostname):
            self.session = session
        try:
            super().do_handshake(block)
        except BaseException:
            if session:  # the next attempt is a full one
                sessions.pop(self.server_hostname, None)
            raise

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive some bytes; see ``ssl.SSLSocket``."""
        count = super().recv_into(buffer, nbytes, flags)
        if not self._remembered:  # with TLS 1.3, the ticket comes with the first bytes
            self._remembered = True
            if session := self.session:
                _shared_by(self.context).sessions[self.server_hostname] = session
        return count

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of a buffer; the time limit is that of each record."""
        write = compat.tls_write(self)
        with memoryview(data) as view, view.cast("B") as rest:
            sent, length = 0, len(rest)
            while sent < length:
                sent += write(rest[sent:])


class TLSConnection(NotedConnection, AWSHTTPSConnection):  # type: ignore[misc]
    """A connection whose certificates of authorities are parsed once for all: it takes 17 ms."""

    ca_certs: str | None

    @property
    def is_connected(self) -> bool:
        """Whether it may be used again: bytes that were decrypted and not read are no answer to a request to come."""
        return bool(super().is_connected) and not (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending())

    def connect(self) -> None:
        """Connect."""
        if isinstance(self.ssl_context, ssl.SSLContext):
            if compat.KNOWS_TLS:
                self.ssl_context.sslsocket_class = TLSSocket
            if self.proxy is None and self.ca_certs is not None:
                self._load_authorities(self.ssl_context, self.ca_certs)
        super().connect()

    def _load_authorities(self, context: ssl.SSLContext, path: str) -> None:
        try:
            state = os.stat(path)
            wanted = path, state.st_mtime_ns, state.st_size
            shared = _shared_by(context)
            with shared.loading:
                if shared.authorities != wanted:
                    context.load_verify_locations(path)
                    shared.authorities = wanted
        except OSError:  # urllib3 says so
            return
        self.ca_certs = None


class TLSPool(AWSHTTPSConnectionPool):  # type: ignore[misc]
    """Connections with TLS."""

    ConnectionCls = TLSConnection
