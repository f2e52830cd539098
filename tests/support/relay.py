"""A proxy as in companies: it passes on requests to http endpoints, and the bytes of connections to https endpoints."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from handshakes import Handshakes


class Relay(socketserver.ThreadingTCPServer):
    """The proxy.

    Args:
        handshakes: for TLS with its clients; None for none.
        refusal: what it answers instead, if anything.

    Attributes:
        heads: of the first request on each connection.
        url: without a user.
    """

    daemon_threads = True

    def __init__(self, handshakes: Handshakes | None = None, refusal: bytes = b"") -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.handshakes, self.refusal = handshakes, refusal
        self.heads: list[str] = []
        self.url = f"{'https' if handshakes else 'http'}://127.0.0.1:{self.server_address[1]}"


class _Connection(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            if self.server.handshakes is None:
                self._serve(self.request)
                return
            with self.server.handshakes.wrapped(self.request, threading.Event()) as secure:
                secure.do_handshake()
                self._serve(secure)

    def _serve(self, client: Any) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := client.recv(65536)):
                return
            data += piece
        head = data.partition(b"\r\n\r\n")[0].decode()
        self.server.heads.append(head)
        method, target, _ = head.split(" ", 2)
        if self.server.refusal:
            client.sendall(self.server.refusal)
            return
        place = urlsplit(f"//{target}" if method == "CONNECT" else target)
        with socket.create_connection((place.hostname or "", place.port or 0)) as server:
            (client if method == "CONNECT" else server).sendall(
                b"HTTP/1.1 200 OK\r\n\r\n" if method == "CONNECT" else data
            )
            _pass_on(client, server)


def _pass_on(client: Any, server: socket.socket) -> None:
    other = {client: server, server: client}
    while True:
        for one in select.select(list(other), [], [])[0]:
            data = one.recv(65536)
            while isinstance(one, ssl.SSLSocket) and one.pending():
                data += one.recv(65536)
            if not data:
                return
            other[one].sendall(data)


@contextmanager
def relaying(handshakes: Handshakes | None = None, refusal: bytes = b"") -> Iterator[Relay]:
    """Run such a proxy."""
    with Relay(handshakes, refusal) as relay:
        thread = threading.Thread(target=relay.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield relay
        finally:
            relay.shutdown()
            thread.join()
