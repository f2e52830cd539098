"""Sockets: the least work that moves the bytes, as the limit; unsigned, and not one file of PyTorch's format."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import torch
from cases import Case, State
from target import Target

_CONNECTIONS = 8
_PART = 16 * 2**20


class Sockets:
    """GET by ``recv_into`` straight into the tensors' memory, PUT by ``sendall`` from it."""

    def __init__(self, target: Target) -> None:
        if target.stores:
            msg = "Raw sockets do not sign their requests. Choose --server nginx to see the limit."
            raise ValueError(msg)
        address = urlsplit(target.endpoint)
        self._address = (address.hostname, address.port)
        self._bucket = target.bucket

    @property
    def settings(self) -> str:
        """Part size and connections."""
        return f"{_PART // 2**20} MiB parts, {_CONNECTIONS} in flight"

    def save(self, state: State, key: str) -> None:
        """Send the tensors' bytes, in parts."""
        self._in_threads(_parts(state), lambda link, part: _put(link, f"/{self._bucket}/{key}", part))

    def load(self, case: Case) -> State:
        """Read the tensors' bytes, in ranges; the tensors share one memory."""
        flat = torch.empty(case.tensors * case.length, dtype=torch.float32)
        memory = memoryview(flat.numpy()).cast("B")
        ranges = [(start, memory[start : start + _PART]) for start in range(0, len(memory), _PART)]
        self._in_threads(ranges, lambda link, part: _get(link, f"/{self._bucket}/{case.raw_key}", *part))
        return dict(zip(case.names(), flat.split(case.length), strict=True))

    def _in_threads(self, parts: Sequence[Any], move: Callable[[socket.socket, Any], None]) -> None:
        waiting: SimpleQueue[Any] = SimpleQueue()
        workers = min(_CONNECTIONS, len(parts))
        for part in [*parts, *[None] * workers]:
            waiting.put(part)

        def work() -> None:
            with closing(socket.create_connection(self._address)) as link:
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while (part := waiting.get()) is not None:
                    move(link, part)

        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(work) for _ in range(workers)]:
                done.result()


def _parts(state: State) -> list[memoryview | bytes]:
    """The memory of the tensors in parts, without a copy for tensors of a part or more."""
    parts: list[memoryview | bytes] = []
    small: list[memoryview] = []
    length = 0
    for tensor in state.values():
        memory = memoryview(tensor.numpy()).cast("B")
        if len(memory) >= _PART:
            parts += [memory[start : start + _PART] for start in range(0, len(memory), _PART)]
            continue
        small.append(memory)
        length += len(memory)
        if length >= _PART:
            parts.append(b"".join(small))
            small, length = [], 0
    return [*parts, b"".join(small)] if small else parts


def _put(link: socket.socket, path: str, part: memoryview | bytes) -> None:
    link.sendall(f"PUT {path} HTTP/1.1\r\nHost: limit\r\nContent-Length: {len(part)}\r\n\r\n".encode())
    link.sendall(part)
    _head(link, b"200")


def _get(link: socket.socket, path: str, start: int, memory: memoryview) -> None:
    last = start + len(memory) - 1
    link.sendall(f"GET {path} HTTP/1.1\r\nHost: limit\r\nRange: bytes={start}-{last}\r\n\r\n".encode())
    early = _head(link, b"206")
    memory[: len(early)] = early
    at = len(early)
    while at < len(memory):
        received = link.recv_into(memory[at:])
        if not received:
            raise ConnectionError("The server ended the connection within an answer. Run the benchmark again.")
        at += received


def _head(link: socket.socket, status: bytes) -> bytes:
    """Read an answer's head; returns what came of its body with it."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        received = link.recv(4096)
        if not received:
            raise ConnectionError("The server ended the connection before it answered. Run the benchmark again.")
        answer += received
    if answer.split(b" ", 2)[1] != status:
        raise ConnectionError(
            f"The server answered {answer[:40]!r}. Look for the reason in the server's configuration."
        )
    return answer.partition(b"\r\n\r\n")[2]
