"""Sockets of requests: their options, and how to interrupt what waits on them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any


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
            with contextlib.suppress(OSError):  # the connection has ended already
                # Not the method of TLS, which would wait for the peer.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return True

    def release(self) -> None:
        """Note that the request has ended: the connection may serve another one."""
        with self._lock:
            self._socket = None


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
