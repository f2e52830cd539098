"""A server that sends arbitrary bytes until the client closes, and counts them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class Talker:
    """The server.

    Attributes:
        url: where it is.
        say: what it says, as it stands on the wire, to the head of a request.
        requests: how many came.
        said: how many bytes it could send.
    """

    url: str
    say: Callable[[bytes], Iterable[bytes]]
    requests: int = 0
    said: int = 0


@contextmanager
def talking(say: Callable[[bytes], Iterable[bytes]]) -> Iterator[Talker]:
    """Yield such a server; each connection is for one request."""
    listener = socket.create_server(("127.0.0.1", 0))
    talker = Talker(f"http://127.0.0.1:{listener.getsockname()[1]}", say)
    ended, clients = threading.Event(), [listener]

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := client.recv(2**16)):
                    return
                head += piece
            talker.requests += 1
            for piece in talker.say(head):
                client.sendall(piece)
                talker.said += len(piece)
                if ended.is_set():
                    return
            client.shutdown(socket.SHUT_WR)
            while client.recv(2**16):
                pass

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                client.settimeout(30)
                clients.append(client)
                threads.append(threading.Thread(target=serve, args=(client,)))
                threads[-1].start()

    threads = [threading.Thread(target=accept)]
    threads[0].start()
    try:
        yield talker
    finally:
        ended.set()
        for each in clients:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in list(threads):
            thread.join(10)
