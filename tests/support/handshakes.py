"""How a proxy greets clients by TLS: with a certificate that they trust, with another's, or not at all."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from pathlib import Path
from threading import Event
from typing import Literal

import trustme

Oddity = Literal["stalled", "broken off", "of a stranger"]
"""A handshake that gets no answer, or is broken off; or a certificate of an authority that nobody trusts."""

_NAME = "127.0.0.1"
_STALLED_SECONDS = 30.0


class Handshakes:
    """The certificates, made anew, and what is to become of the next handshakes.

    Args:
        folder: where to put the certificate of the authority.

    Attributes:
        trusted: the path of that certificate, in PEM.
        next: what is odd about the next handshakes, in order; there is nothing about those after them.
    """

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        self.trusted = folder / "authority.pem"
        self.trusted.write_bytes(authority.cert_pem.bytes())
        self.next: deque[Oddity] = deque()
        self._own, self._strange = _context(authority), _context(trustme.CA())

    def wrapped(self, client: socket.socket, ended: Event) -> ssl.SSLSocket:
        """A connection over which TLS is spoken, and whose handshake is yet to come.

        Args:
            client: the connection, which is not to be used any more.
            ended: ends what is stalled.

        Raises:
            ConnectionAbortedError: if there is to be no handshake.
        """
        odd = self.next.popleft() if self.next else None
        if odd in ("stalled", "broken off"):
            with client:
                client.recv(2**16)  # all that it begins with: else the connection would be reset
                ended.wait(_STALLED_SECONDS if odd == "stalled" else 0)
            raise ConnectionAbortedError
        context = self._strange if odd == "of a stranger" else self._own
        return context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)


def _context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(_NAME).configure_cert(context)
    return context
