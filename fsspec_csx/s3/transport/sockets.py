"""Sockets of requests: their options, and how to end what waits on them."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any


def shut_down(link: Any) -> bool:
    """Shut down a socket, so that system calls that wait on it return; return whether there was one."""
    if link is None:
        return False
    inner = getattr(link, "socket", link)  # that to a proxy, if the connection has TLS within TLS
    with contextlib.suppress(OSError):  # the connection has ended already
        socket.socket.shutdown(inner, socket.SHUT_RDWR)  # not that of TLS, which would wait for the peer
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
