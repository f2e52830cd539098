"""A proxy that cuts connections, between a client and the real server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class CuttingProxy:
    """Passes bytes on, and cuts as many answers as asked for, each after so many bytes.

    Attributes:
        url: what clients are given in place of the server's.
        cuts: how many answers are still to be cut; only those that reach ``after`` bytes are.
        after: in bytes.
    """

    url: str = ""
    cuts: int = 0
    after: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take_cut(self) -> bool:
        """Whether this answer is to be cut."""
        with self.lock:
            if not self.cuts:
                return False
            self.cuts -= 1
            return True

    def serve(self, client: socket.socket, upstream: socket.socket) -> None:
        """Pass one connection on, both ways."""
        up = threading.Thread(target=_pump, args=(client, upstream))
        up.start()
        passed = 0
        with suppress(OSError):
            while data := upstream.recv(65536):
                client.sendall(data)
                passed += len(data)
                if passed >= self.after and self.take_cut():
                    break
        for end in (client, upstream):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        up.join()
        client.close()
        upstream.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)


@contextmanager
def cutting_proxy(url: str) -> Iterator[CuttingProxy]:
    """Yield a proxy before the server at this URL."""
    target = urlsplit(url)
    proxy = CuttingProxy()
    threads: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                upstream = socket.create_connection((target.hostname, target.port))
                threads.append(threading.Thread(target=proxy.serve, args=(client, upstream), daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
