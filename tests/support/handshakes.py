"""The TLS handshakes of a proxy: with a trusted certificate, with another one, or none."""

from __future__ import annotations

import socket
import ssl
from collections import deque
from pathlib import Path
from threading import Event
from typing import Literal

import trustme

Oddity = Literal["stalled", "broken off", "of a stranger"]
"""A handshake that gets no answer, or is interrupted; or a certificate of an untrusted authority."""

_NAME = "127.0.0.1"
_STALLED_SECONDS = 30.0


class Handshakes:
    """New certificates, and what happens to the next handshakes.

    Args:
        folder: where to put the certificate of the authority.

    Attributes:
        authority: whose certificate it is.
        trusted: the path of that certificate, in PEM.
        next: what is odd about the next handshakes, in order; there is nothing about those after them.
        resumed: for each that was made, whether it resumed a session.
    """

    def __init__(self, folder: Path) -> None:
        self.authority = trustme.CA()
        self.trusted = folder / "authority.pem"
        self.trusted.write_bytes(self.authority.cert_pem.bytes())
        self.next: deque[Oddity] = deque()
        self.resumed: list[bool] = []
        self._own, self._strange = _context(self.authority), _context(trustme.CA())

    def limit(self, version: ssl.TLSVersion, *, tickets: bool) -> None:
        """From now on, speak this version only, and resume sessions or not."""
        self._own = _context(self.authority)
        self._own.minimum_version = self._own.maximum_version = version
        if not tickets:
            self._own.options |= ssl.OP_NO_TICKET
            self._own.num_tickets = 0

    def renew(self) -> None:
        """From now on, have a certificate of a new authority."""
        self.authority = trustme.CA()
        self._own = _context(self.authority)

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
