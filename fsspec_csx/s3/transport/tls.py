"""TLS connections: OpenSSL reads and writes records directly in the caller's memory.

A record has 16 KiB. Through http.client, BufferedReader and SSLSocket, each record takes six Python functions, during
which the threads of the other connections wait for the GIL.
"""

from __future__ import annotations

import os
import ssl
import threading
from typing import Any
from weakref import WeakKeyDictionary

from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool

from fsspec_csx.s3.transport import compat


class _Shared:
    """State that all connections of one ``SSLContext`` share.

    Attributes:
        loading: held while certificates are loaded.
        authorities: path, time and size of the certificate file that was loaded.
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
    """A client socket that resumes the last session with its host, and sends and receives without copying."""

    _remembered = False

    def do_handshake(self, block: bool = False) -> None:
        """Perform the handshake; it is short if the server knows the session."""
        sessions = _shared_by(self.context).sessions
        if session := sessions.get(self.server_hostname):
            self.session = session
        try:
            super().do_handshake(block)
        except BaseException:
            if session:  # so that the next attempt makes a full handshake
                sessions.pop(self.server_hostname, None)
            raise

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive some bytes; see ``ssl.SSLSocket``."""
        count = super().recv_into(buffer, nbytes, flags)
        if not self._remembered:  # in TLS 1.3, the session ticket arrives with the first data
            self._remembered = True
            if session := self.session:
                _shared_by(self.context).sessions[self.server_hostname] = session
        return count

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all of a buffer; the timeout applies to each call of OpenSSL."""
        write = compat.socket_write(self)
        with memoryview(data) as view, view.cast("B") as rest:
            sent, length = 0, len(rest)
            while sent < length:
                sent += write(rest[sent:])


def has_decrypted(link: Any) -> bool:
    """Return whether bytes of a socket are taken from the system and not received yet; a poll does not show them."""
    if (incoming := getattr(link, "incoming", None)) is not None:  # urllib3's TLS within the TLS of a proxy
        return bool(incoming.pending or link.sslobj.pending() or has_decrypted(link.socket))
    return isinstance(link, ssl.SSLSocket) and link.pending() > 0


class TLSConnection(HTTPSConnection):
    """A connection that shares parsed CA certificates with others: parsing takes 17 ms."""

    def connect(self) -> None:
        """Connect, with ``TLSSocket`` and shared CA certificates where possible."""
        path = self.ca_certs
        if isinstance(self.ssl_context, ssl.SSLContext):
            if compat.KNOWS_TLS:
                self.ssl_context.sslsocket_class = TLSSocket
            if self.proxy is None and self.ca_certs is not None:
                self._load_authorities(self.ssl_context, self.ca_certs)
        try:
            super().connect()
        finally:
            self.ca_certs = path  # the connection may be made again, when the file has changed

    def _load_authorities(self, context: ssl.SSLContext, path: str) -> None:
        try:
            state = os.stat(path)
            wanted = path, state.st_mtime_ns, state.st_size
            shared = _shared_by(context)
            with shared.loading:
                if shared.authorities != wanted:
                    context.load_verify_locations(path)
                    shared.authorities = wanted
        except OSError:  # urllib3 raises the error
            return
        self.ca_certs = None


class TLSPool(HTTPSConnectionPool):
    """A pool of connections with TLS."""

    ConnectionCls = TLSConnection
