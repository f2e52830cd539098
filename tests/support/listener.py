"""An HTTP server whose responses a function returns, and that records the requests."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body."""


@dataclass
class Heard:
    """A request.

    Attributes:
        method: such as GET.
        path: with the query.
        headers: by names in lower case.
        body: all of it.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Listener:
    """The server.

    Attributes:
        url: where it is.
        answer: what it says to a request; may be changed at any time.
        heard: the requests, in order.
    """

    url: str
    answer: Callable[[Heard], Answer]
    heard: list[Heard]


@contextmanager
def listening(
    answer: Callable[[Heard], Answer] = lambda heard: (200, {}, b""), tls: ssl.SSLContext | None = None
) -> Iterator[Listener]:
    """Yield such a server; a response to HEAD has no body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            heard = Heard(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            listener.heard.append(heard)
            status, headers, report = listener.answer(heard)
            report = b"" if self.command == "HEAD" else report
            self.send_response(status)
            length = {} if "Transfer-Encoding" in headers else {"Content-Length": str(len(report))}
            for name, value in {**length, **headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(report)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_CONNECT = serve  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that closes the connection early prints nothing

    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    listener = Listener(f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}", answer, [])
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield listener
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
