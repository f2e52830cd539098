"""Plain sockets: the least work that moves the bytes, as the limit, without a file format or a multipart upload."""

from __future__ import annotations

import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from queue import SimpleQueue
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from awscrt import checksums
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from cases import Case, State, as_bytes
from target import Target
from zlib_ng import zlib_ng

_CONNECTIONS = 8
_PART = 16 * 2**20
_VECTOR = 1024  # pieces of memory in one call of the system
_HEAD_LENGTH = 16384
_STEP = 2**20

Part = Sequence[memoryview]
T = TypeVar("T", int, bytes)


class Sockets:
    """GET by ``recvmsg_into`` straight into the tensors' memory, PUT by ``sendmsg`` from it; each part is an object."""

    def __init__(self, target: Target, connections: int = _CONNECTIONS) -> None:
        self._connections = connections
        self.settings = f"{_PART // 2**20} MiB parts, {connections} in flight"
        self._endpoint = urlsplit(target.endpoint)
        self._base = f"{target.endpoint}/{target.bucket}"
        self._tls = ssl.create_default_context(cafile=target.authority) if target.authority else None
        self._signer = None
        if target.stores:
            credentials = Credentials(target.access_key, target.secret_key)
            self._signer = S3SigV4QueryAuth(credentials, "s3", target.region, expires=3600)

    def save(self, state: State, key: str) -> None:
        """Send the tensors' bytes."""
        self._in_threads("PUT", key, parts(state.values()))

    def load(self, key: str, case: Case) -> State:
        """Read the tensors' bytes, each tensor into fresh memory of its own."""
        state = {name: torch.empty(shape, dtype=dtype) for name, dtype, shape in case.layout()}
        self._in_threads("GET", key, parts(state.values()))
        return state

    def _in_threads(self, method: str, key: str, moved: Sequence[Part]) -> None:
        waiting: SimpleQueue[Any] = SimpleQueue()
        workers = min(self._connections, len(moved))
        for item in [*enumerate(moved), *[None] * workers]:
            waiting.put(item)

        def work() -> None:
            with closing(self.connect()) as link:
                while (item := waiting.get()) is not None:
                    number, part = item
                    if method == "PUT":
                        self._compute_checksums(part, whole=True)
                    _exchange(link, self._head(method, f"{key}/{number}", part), part, method)
                    if method == "GET":
                        self._compute_checksums(part, whole=False)

        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(work) for _ in range(workers)]:
                done.result()

    def _compute_checksums(self, part: Part, *, whole: bool) -> None:
        """None here; ``whole`` is whether to compute that of all its pieces together too."""

    def exchange(self, link: socket.socket, method: str, key: str, data: bytes) -> bytes:
        """Send a small request, and return the body of its answer."""
        link.sendall(self._head(method, key, [memoryview(data)]) + data)
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += _some(link.recv(_HEAD_LENGTH))
        _check_head(seen)
        head, _, body = seen.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head.lower())
        while length and len(body) < int(length[1]):
            body += _some(link.recv(int(length[1]) - len(body)))
        return body

    def connect(self) -> socket.socket:
        """A connection, with which `exchange` can be called."""
        host = self._endpoint.hostname
        assert host
        assert self._endpoint.port
        link = socket.create_connection((host, self._endpoint.port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._tls.wrap_socket(link, server_hostname=host) if self._tls else link

    def _head(self, method: str, key: str, part: Part) -> bytes:
        request = AWSRequest(method, f"{self._base}/{key}")
        if self._signer:
            self._signer.add_auth(request)
        path = request.url.partition(self._endpoint.netloc)[2]
        length = f"Content-Length: {sum(map(len, part))}\r\n" if method == "PUT" else ""
        return f"{method} {path} HTTP/1.1\r\nHost: {self._endpoint.netloc}\r\n{length}\r\n".encode()


class CheckedSockets(Sockets):
    """The same, but it computes the checksums of this package: CRC-32 of the pieces, and CRC64NVME of uploads."""

    def _compute_checksums(self, part: Part, *, whole: bool) -> None:
        together = 0
        for piece in part:
            for start in range(0, len(piece), _STEP):
                step = piece[start : start + _STEP]
                zlib_ng.crc32(step)
                together = checksums.crc64nvme(step, together) if whole else 0


def parts(tensors: Iterable[torch.Tensor]) -> list[Part]:
    """The memory of tensors, one after the other, cut into parts of pieces; nothing is copied."""
    found: list[list[memoryview]] = []
    room = 0
    for tensor in tensors:
        array: Any = as_bytes(tensor).numpy()
        memory = memoryview(array)
        while memory:
            if not room:
                found.append([])
                room = _PART
            piece, memory = memory[:room], memory[room:]
            found[-1].append(piece)
            room -= len(piece)
    return list(found)


def _exchange(link: socket.socket, head: bytes, part: Part, method: str) -> None:
    link.sendall(head)
    if isinstance(link, ssl.SSLSocket):  # which knows no vectors, and no looking ahead
        _exchange_tls(link, part, method)
    elif method == "PUT":
        _move(part, link.sendmsg)
        _skip_head(link)
    else:
        _skip_head(link)
        _move(part, lambda pieces: link.recvmsg_into(pieces)[0])


def _exchange_tls(link: ssl.SSLSocket, part: Part, method: str) -> None:
    if method == "PUT":
        for piece in part:
            link.sendall(piece)
    seen = bytearray()
    while not seen.endswith(b"\r\n\r\n"):
        seen += _some(link.recv(1))
    _check_head(bytes(seen))
    if method == "GET":
        for piece in part:
            while piece:
                piece = piece[_some(link.recv_into(piece)) :]


def _some(moved: T) -> T:
    if not moved:
        raise ConnectionError("The server ended the connection within an answer. Run the benchmark again.")
    return moved


def _move(part: Part, call: Callable[[list[memoryview]], int]) -> None:
    """Have a call of the system move all pieces, of which it may do only some at a time."""
    waiting = deque(part)
    while waiting:
        count = _some(call(list(islice(waiting, _VECTOR))))
        while waiting and count >= len(waiting[0]):
            count -= len(waiting.popleft())
        if count:
            waiting[0] = waiting[0][count:]


def _skip_head(link: socket.socket) -> None:
    """Read an answer's head, and nothing of its body."""
    end = -1
    while end < 0:
        seen = link.recv(_HEAD_LENGTH, socket.MSG_PEEK)
        end = seen.find(b"\r\n\r\n")
        if not seen or (end < 0 and len(seen) == _HEAD_LENGTH):
            raise ConnectionError("The server ended the connection before it answered. Run the benchmark again.")
    _check_head(seen)
    link.recv(end + 4)


def _check_head(seen: bytes) -> None:
    if seen.split(b" ", 2)[1] != b"200":
        raise ConnectionError(f"The server answered {seen[:40]!r}. Look for the reason in the server's configuration.")
