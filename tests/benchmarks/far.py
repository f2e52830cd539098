"""A store that is far away: each connection has a limited rate, and each answer comes after a delay.

    python tests/benchmarks/far.py FOLDER --rate 25 --delay 20

It serves the files of a folder and discards uploads, as the nginx of this benchmark does, in a separate process with a
thread for each connection. The rate is that of one connection: S3 gives each about 85 MB/s, however fast the link is.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-design-patterns.html
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from null_answers import COMPLETED, COPIED, CREATED, DELETED, ETAG, LISTED
from target import BUCKET, Target

_STEP = 256 * 1024  # bytes between two looks at the clock
_START_SECONDS = 10.0


class FarStore:
    """The store in a separate process; it ends with its ``with`` block.

    Args:
        rate: bytes a second of each connection, either way.
        delay: seconds from the end of a request to the begin of its answer, and from a connection to its first request.
        directory: where to create the temporary folder, in memory if possible.
        keeps: whether an object that is not uploaded in parts can be read; it then has as many zeros.

    Attributes:
        target: how to reach it.
        folder: the bucket; its files are served.
    """

    def __init__(
        self, name: str, rate: float, delay: float, directory: str | None = None, *, keeps: bool = False
    ) -> None:
        self._name, self._rate, self._delay, self._directory, self._keeps = name, rate, delay, directory, keeps

    def __enter__(self) -> FarStore:
        with contextlib.ExitStack() as stack:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-", dir=self._directory)))
            self.folder = root / "data" / BUCKET
            self.folder.mkdir(parents=True)
            log = root / "requests"
            command = [sys.executable, __file__, str(root / "data"), "--log", str(log)]
            command += ["--rate", str(self._rate / 1e6), "--delay", str(self._delay * 1e3)]
            command += ["--keep"] * self._keeps
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            port = int(process.stdout.readline())
            self.target = Target(self._name, f"http://127.0.0.1:{port}", "anybody", "anything", str(log))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _Connection:
    """One connection: requests are read and answered in turn."""

    def __init__(self, link: socket.socket, root: Path, rate: float, delay: float, log: int, keeps: bool) -> None:
        self._link, self._root, self._rate, self._delay, self._log = link, root, rate, delay, log
        self._keeps = keeps
        self._rest = b""

    def serve(self) -> None:
        time.sleep(self._delay)
        with self._link, contextlib.suppress(ConnectionError):
            while head := self._head():
                method, path, headers = head
                started = time.monotonic()
                length = self._drop_body(headers, started)
                time.sleep(self._delay)
                if self._keeps and method == "PUT" and "?" not in path:
                    with (self._root / unquote(path).lstrip("/")).open("wb") as file:
                        file.truncate(length)
                self._answer(method, path, headers)
                os.write(self._log, f"{method} {length}\n".encode())

    def _head(self) -> tuple[str, str, dict[str, str]] | None:
        while b"\r\n\r\n" not in self._rest:
            if not (data := self._link.recv(65536)):
                return None
            self._rest += data
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        return method, path, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def _drop_body(self, headers: dict[str, str], started: float) -> int:
        if headers.get("expect") == "100-continue":
            self._link.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding") == "chunked":
            total = 0
            while size := int(self._line().partition(b";")[0], 16):
                total += self._drop(size, started, total)
                self._line()
            while self._line():
                pass
            return total
        return self._drop(int(headers.get("content-length", "0")), started, 0)

    def _line(self) -> bytes:
        while b"\r\n" not in self._rest:
            if not (data := self._link.recv(65536)):
                raise ConnectionError("The client ended the connection within a request.")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _drop(self, length: int, started: float, before: int) -> int:
        got, self._rest = min(length, len(self._rest)), self._rest[length:]
        buffer = bytearray(_STEP)
        while got < length:
            count = self._link.recv_into(buffer, min(_STEP, length - got))
            if not count:
                raise ConnectionError("The client ended the connection within a body.")
            got += count
            self._pace(started, before + got)
        return length

    def _pace(self, started: float, moved: int) -> None:
        ahead = started + moved / self._rate - time.monotonic()
        if ahead > 0.002:  # a shorter sleep would take longer than it says
            time.sleep(ahead)

    def _answer(self, method: str, path: str, headers: dict[str, str]) -> None:
        url = urlsplit(path)
        if method == "PUT" and "x-amz-copy-source" in headers:
            self._send(200, {"Content-Type": "application/xml"}, COPIED)
        elif method == "PUT":
            self._send(200, {"ETag": f'"{ETAG}"'})
        elif method == "DELETE":
            self._send(204, {})
        elif method == "POST" and url.query.partition("&")[0] in ("delete", "delete="):
            self._send(200, {"Content-Type": "application/xml"}, DELETED)
        elif method == "POST":
            self._send(200, {"Content-Type": "application/xml"}, COMPLETED if "uploadId=" in url.query else CREATED)
        elif url.path.count("/") < 2 or url.path.endswith("/"):
            self._send(200, {"Content-Type": "application/xml"}, LISTED)
        else:
            self._send_file(method, self._root / unquote(url.path).lstrip("/"), headers.get("range", ""))

    def _send_file(self, method: str, path: Path, span: str) -> None:
        try:
            file = path.open("rb")
        except OSError:
            self._send(404, {})
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            first, _, last = span.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, size - int(last)) if last else 0
            end = min(int(last) + 1, size) if first and last else size
            also = {"ETag": f'"{ETAG}"', "Accept-Ranges": "bytes", "Last-Modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
            if span:
                also["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            self._send(206 if span else 200, also, length=end - start)
            if method != "GET":
                return
            started, position = time.monotonic(), start
            while position < end:
                position += os.sendfile(self._link.fileno(), file.fileno(), position, min(_STEP, end - position))
                self._pace(started, position - start)

    def _send(self, status: int, headers: dict[str, str], body: str = "", length: int | None = None) -> None:
        named = {"Content-Length": str(len(body) if length is None else length), **headers}
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in named.items()), "", body]
        self._link.sendall("\r\n".join(lines).encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="far.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with a folder for each bucket")
    parser.add_argument("--rate", type=float, required=True, help="MB/s of each connection")
    parser.add_argument("--delay", type=float, required=True, help="milliseconds before each answer")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="a line for each request")
    parser.add_argument("--keep", action="store_true", help="keep the sizes of uploads, which are read as zeros")
    return parser.parse_args()


def main() -> None:
    """Serve until the standard input ends; the first line printed is the port."""
    given = _arguments()
    log = os.open(given.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)

    def accept() -> Iterator[_Connection]:
        while True:
            link, _ = listener.accept()
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield _Connection(link, given.folder, given.rate * 1e6, given.delay / 1e3, log, given.keep)

    def serve() -> None:
        for connection in accept():
            threading.Thread(target=connection.serve, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
