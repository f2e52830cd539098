"""Many requests in few threads: a connection that is slow, stalls or ends affects only its own request."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from proxy import Fault, FaultProxy, error_answer, proxy_by, through

from fsspec_csx.s3 import many_objects
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.socket_loop import Ready, SocketLoop, Steps
from fsspec_csx.testing import LocalS3

FAR = 16
"""Requests in flight: more than to a near store, so that connections share threads."""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


@pytest.fixture(params=["http", "https"])
def proxy(request: pytest.FixtureRequest, server: LocalS3, tmp_path: Path) -> Iterator[FaultProxy]:
    """A proxy before the server, with and without TLS."""
    with proxy_by(request.param, server, tmp_path) as running:
        yield running


def received(link: socket.socket) -> Steps[bytes]:
    """Steps that receive some bytes."""
    link.settimeout(0)
    while True:
        yield Ready(link, select.POLLIN)
        try:
            return link.recv(100)
        except BlockingIOError:
            continue


def test_waits(pool: ThreadPoolExecutor) -> None:
    """One thread waits for several sockets and calls; the thread and its descriptors end with the last of them."""
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    loop, released = SocketLoop(pool.submit, 60), threading.Event()
    for _ in range(3):
        released.clear()
        pairs = [socket.socketpair() for _ in range(5)]

        def called() -> Steps[object]:
            return (yield lambda: released.wait(60))

        waiting = loop.run(called())
        futures = [loop.run(received(here)) for here, _ in pairs]
        for number, (_, there) in reversed(list(enumerate(pairs))):
            there.sendall(b"%d" % number)
            assert futures[number].result(60) == b"%d" % number
        assert not waiting.done()
        released.set()
        assert waiting.result(60) is True
        for each in sum(pairs, ()):
            each.close()
    pool.shutdown()
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_errors(pool: ThreadPoolExecutor) -> None:
    """A socket that stalls, a call that fails and steps that fail are errors of their own steps alone."""
    loop = SocketLoop(pool.submit, 0.4)
    (here, there), (silent, other) = socket.socketpair(), socket.socketpair()

    def failing() -> Steps[None]:
        with pytest.raises(ZeroDivisionError):
            yield lambda: 1 / 0
        raise KeyError

    with here, there, silent, other:
        stalled, failed, answered = loop.run(received(silent)), loop.run(failing()), loop.run(received(here))
        there.sendall(b"a")
        assert answered.result(60) == b"a"
        assert isinstance(failed.exception(60), KeyError)
        assert isinstance(stalled.exception(60), TimeoutError)


def test_few_threads() -> None:
    """Loops make the calls themselves where no other thread can begin them."""
    with ThreadPoolExecutor(2) as pool:
        loops = [SocketLoop(pool.submit, 0.4) for _ in range(2)]

        def calling() -> Steps[int]:
            first = yield lambda: 1
            return first + (yield lambda: 2)  # type: ignore[no-any-return]

        futures = [loop.run(calling()) for loop in loops for _ in range(5)]
        assert [each.result(60) for each in futures] == [3] * 10


def test_closed_sockets(pool: ThreadPoolExecutor) -> None:
    """Steps that wait for a closed socket fail, and no others."""
    loop, (here, there) = SocketLoop(pool.submit, 60), socket.socketpair()

    def wrong() -> Steps[None]:
        closed = socket.socket()
        closed.close()
        yield Ready(closed, select.POLLIN)

    with here, there:
        answered = loop.run(received(here))
        with pytest.raises((ValueError, OSError)):
            loop.run(wrong()).result(60)
        there.sendall(b"a")
        assert answered.result(60) == b"a"


def test_loop_that_fails(pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of the loop, as for lack of memory, ends its steps, but none before its call; later ones work."""
    fails, failed, called, released = (threading.Event() for _ in range(4))
    ended = list[str]()

    class Poll:
        def __init__(self) -> None:
            self._real = poll()
            self.register, self.unregister = self._real.register, self._real.unregister

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            if fails.is_set():
                failed.set()
                raise MemoryError
            return self._real.poll(milliseconds)

    def calling() -> Steps[object]:
        def call() -> None:
            called.set()
            released.wait(60)
            ended.append("call")

        return (yield call)

    poll = select.poll
    monkeypatch.setattr(select, "poll", Poll)
    loop, (here, there), (silent, other) = SocketLoop(pool.submit, 60), socket.socketpair(), socket.socketpair()
    with here, there, silent, other:
        stalled, busy = loop.run(received(silent)), loop.run(calling())
        busy.add_done_callback(lambda _: ended.append("steps"))
        assert called.wait(60)
        fails.set()
        there.sendall(b"a")
        refused = loop.run(received(here))
        assert failed.wait(60)
        assert not busy.done()
        released.set()
        for each in (stalled, busy, refused):
            assert isinstance(each.exception(60), MemoryError)
        assert ended == ["call", "steps"]
        fails.clear()
        assert loop.run(received(here)).result(60) == b"a"


def test_too_many_open_files(fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors for a loop, each connection has its thread."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(30)}

    def refused() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    fs.connect()
    monkeypatch.setattr(os, "pipe", refused)
    with fs.transfer.slots.fixed(FAR):
        fs.pipe(objects)
        assert fs.cat(list(objects)) == objects


def test_descriptors_that_are_used_again(pool: ThreadPoolExecutor) -> None:
    """Steps that replace their socket wait for the new one, although it may have the descriptor of another's."""
    loop, pairs = SocketLoop(pool.submit, 60), [socket.socketpair() for _ in range(2)]
    fresh: list[tuple[socket.socket, socket.socket]] = []

    def replacing(link: socket.socket) -> Steps[bytes]:
        yield from received(link)
        link.close()
        here, there = yield socket.socketpair
        fresh.append((here, there))
        there.sendall(b"new")
        return (yield from received(here))

    futures = [loop.run(replacing(here)) for here, _ in pairs]
    for _, there in pairs:
        there.sendall(b"old")
    assert [each.result(60) for each in futures] == [b"new"] * 2
    for each in sum(fresh + pairs, ()):
        each.close()


@pytest.mark.parametrize("method", ["put", "get"])
def test_slow_local_files(
    fs: CSXFileSystem, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Local files that take long to open or replace do not wait for each other."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(30)}
    paths = [str(tmp_path / name.rpartition("/")[2]) for name in objects]
    name, owner = ("file_body", many_objects) if method == "put" else ("replace", os)
    function, calls = getattr(owner, name), Calls()

    def slow(*args: Any) -> Any:
        with calls.together(5):
            return function(*args)

    if method == "put":
        for path, data in zip(paths, objects.values(), strict=True):
            Path(path).write_bytes(data)
    else:
        fs.pipe(objects)
    fs.connect()
    monkeypatch.setattr(owner, name, slow)
    with fs.transfer.slots.fixed(FAR):
        getattr(fs, method)(*((paths, list(objects)) if method == "put" else (list(objects), paths)))
    monkeypatch.undo()
    assert calls.most >= 5
    assert fs.cat(list(objects)) == objects
    assert [Path(path).read_bytes() for path in paths] == list(objects.values())


class Calls:
    """Calls of a function, each of which takes some time; later ones wait until enough are made at the same time.

    Attributes:
        most: how many were made at a time.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._begun = self._running = self.most = 0

    @contextmanager
    def together(self, number: int) -> Iterator[None]:
        """A call."""
        with self._condition:
            self._begun += 1
            self._running += 1
            self.most = max(self.most, self._running)
            self._condition.notify_all()
            self._condition.wait_for(lambda: self.most >= number, 0.05 if self._begun < 10 else 60)
        try:
            yield
        finally:
            with self._condition:
                self._running -= 1


@pytest.mark.slow
def test_faults(server: LocalS3, bucket: str, proxy: FaultProxy, tmp_path: Path) -> None:
    """Objects come and go whole, whatever happens to single connections."""
    objects = {
        f"{bucket}/{number}": os.urandom(3 * 2**20 if number % 20 == 7 else 100 + number) for number in range(60)
    }

    def of(*numbers: int) -> object:
        return lambda made: made.path.rpartition("/")[2] in map(str, numbers)

    def faults(method: str) -> list[Fault]:
        return [
            Fault(method, times=2, when=of(11, 12), closes=True),
            Fault(method, times=1, when=of(13), cut_down=0),
            Fault(method, times=1, when=of(15), answer=error_answer(503, "SlowDown")),
            Fault(method, times=1, when=of(16), answer=error_answer(500, "InternalError")),
            Fault(method, times=1, when=of(17), stall_up=0 if method == "PUT" else None, stall_down=10),
            Fault(method, times=1, when=of(27), rate=10 * 2**20),
            Fault(method, times=1, when=of(18), resets=1),
        ]

    fs = through(proxy, server, config_kwargs={"read_timeout": 2})
    fs.connect()
    with fs.transfer.slots.fixed(FAR):
        proxy.faults = faults("PUT")
        fs.pipe(objects)
        assert all(each.done for each in proxy.faults)
        proxy.faults = faults("GET")
        fs.get(list(objects), [str(tmp_path / name.rpartition("/")[2]) for name in objects])
    assert all((tmp_path / name.rpartition("/")[2]).read_bytes() == data for name, data in objects.items())
    assert all(each.done for each in proxy.faults)
    proxy.faults = []
    assert fs.cat(list(objects)) == objects
