"""The number of requests in flight on real sockets: at a far store, at a busy one, in two filesystems, after a fork."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from answers import s3_error
from forked import python
from listener import Answer, Heard, Listener, listening

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.concurrency import LEAST, ConcurrencyLimit
from fsspec_csx.testing import LocalS3

BODY = b"x" * 1000
ETAG = '"0123456789abcdef0123456789abcdef"'


@dataclass
class Store:
    """A store of objects that are all alike, which answers after a delay.

    Attributes:
        delay: seconds.
        most: how many requests it answers at a time; more are refused.
        at_a_time: how many requests were being answered when each came.
    """

    delay: float
    most: int = 1000
    at_a_time: list[int] = field(default_factory=list)
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def _counted(self) -> Iterator[bool]:
        with self._lock:
            self._now += 1
            self.at_a_time.append(self._now)
            refused = self._now > self.most
        try:
            yield refused
        finally:
            with self._lock:
                self._now -= 1

    def answer(self, heard: Heard) -> Answer:
        """Answer a request."""
        with self._counted() as refused:
            time.sleep(self.delay)
            if refused:
                return 503, {"Content-Type": "application/xml"}, s3_error("SlowDown")
            return 200, {"ETag": ETAG}, BODY


def connected(listener: Listener, **options: object) -> CSXFileSystem:
    """A filesystem at a store."""
    return CSXFileSystem(key="key", secret="secret", endpoint_url=listener.url, skip_instance_cache=True, **options)


def read(fs: CSXFileSystem, count: int) -> None:
    """Read so many objects."""
    memories = [memoryview(bytearray(len(BODY))) for _ in range(count)]
    fs.readinto_objects([(f"bucket/{number}", 0, memory, len(BODY)) for number, memory in enumerate(memories)])
    assert all(memory == BODY for memory in memories)


@pytest.mark.parametrize(
    ("delay", "options", "least", "most"), [(0.03, {}, 25, 64), (0.03, {"max_concurrency": 4}, 4, 4)]
)
def test_far_store(delay: float, options: dict[str, int], least: int, most: int) -> None:
    """A store whose answers take long gets many requests at a time, and never more than ``max_concurrency``."""
    store = Store(delay)
    with listening(store.answer) as listener:
        read(connected(listener, **options), 300 if most > 4 else 60)
    assert least <= max(store.at_a_time) <= most


def test_burst_of_refusals() -> None:
    """A store that is too busy gets fewer requests at a time, and more again afterwards; all objects come."""
    store = Store(0.03)
    with listening(store.answer) as listener:
        fs = connected(listener)
        read(fs, 200)
        before = fs.transfer.slots.limit
        store.most = 16
        read(fs, 100)
        lowered = fs.transfer.slots.limit
        store.most = 1000
        for _ in range(20):
            read(fs, 100)
            if fs.transfer.slots.limit > lowered:
                break
        assert lowered < before
        assert fs.transfer.slots.limit > lowered


def test_filesystems_share_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """All transfers of a process with one endpoint share their turns; another endpoint has its own."""
    for name in ("answered", "measured"):  # so that the limit stays what it is
        monkeypatch.setattr(ConcurrencyLimit, name, lambda *_, **__: None)
    store = Store(0.0)
    with listening(store.answer) as listener, listening(store.answer) as other:
        first, second, third = connected(listener), connected(listener, max_concurrency=20), connected(other)
        store.delay = 0.005
        readers = [threading.Thread(target=read, args=(fs, 100)) for fs in (first, second)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert LEAST / 2 < max(store.at_a_time) <= LEAST
        third.connect()
        assert first.transfer.slots is second.transfer.slots is not third.transfer.slots


FORKED = """
import os, sys, fsspec

fs = fsspec.filesystem("s3")
fs.pipe_file(sys.argv[1], b"123")
slots = fs.transfer.slots
slots.throttled()
child = os.fork()
if not child:
    assert fs.cat_file(sys.argv[1]) == b"123"
    assert fs.transfer.slots is not slots
    assert (slots.limit, fs.transfer.slots.limit) == (5, 10)
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


def test_forked_process(environment: LocalS3, bucket: str) -> None:
    """A forked process finds its own number of requests, and waits for no turn of its parent's."""
    subprocess.run([*python(), "-c", FORKED, f"{bucket}/key"], check=True, timeout=60)


def test_threads_end_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that were needed for a far store end when nothing is read any more."""
    monkeypatch.setattr("fsspec_csx.s3.transport.threads.IDLE_SECONDS", 0.1)
    with listening(Store(0.03).answer) as listener:
        fs = connected(listener)
        read(fs, 200)
        assert len(fs.transfer._threads) > LEAST
        deadline = time.monotonic() + 5
        while len(fs.transfer._threads) > LEAST and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(fs.transfer._threads) <= LEAST
        read(fs, 20)
