"""The number of requests in flight on real sockets: at a far store, at a busy one, in two filesystems, after a fork."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch.utils.data
from answers import s3_error
from forked import python
from listener import Answer, Heard, Listener, listening

from fsspec_csx.s3.connection import fair_share
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.part_copies import COPIED_PART
from fsspec_csx.s3.transport.concurrency import MAX_REQUESTS, MIN_REQUESTS, ConcurrencyLimit, RequestSlots
from fsspec_csx.s3.transport.range_planning import size_for
from fsspec_csx.testing import LocalS3

pytestmark = pytest.mark.adaptive

MIB = 2**20
BODY = b"x" * 1000
ETAG = '"0123456789abcdef0123456789abcdef"'
_WAITED_SECONDS = 0.3


@dataclass
class Store:
    """A store of objects that are all alike, which answers after a delay.

    Attributes:
        delay: seconds.
        data: what each object has.
        together: so many requests at a time are waited for, as a busy machine sends them late.
        most: how many requests it answers at a time; more are refused.
        at_a_time: how many requests were being answered when each came.
    """

    delay: float
    data: bytes = BODY
    together: int = 0
    most: int = 1000
    at_a_time: list[int] = field(default_factory=list)
    _now: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def _counted(self) -> Iterator[bool]:
        with self._changed:
            self._now += 1
            self.at_a_time.append(self._now)
            refused = self._now > self.most
            self._changed.notify_all()
            if len(self.at_a_time) > 2:  # the first of a call is made alone
                self._changed.wait_for(lambda: max(self.at_a_time, default=0) >= self.together, _WAITED_SECONDS)
        try:
            yield refused
        finally:
            with self._changed:
                self._now -= 1

    def answer(self, heard: Heard) -> Answer:
        """Answer a request."""
        with self._counted() as refused:
            time.sleep(self.delay)
            if refused:
                return 503, {"Content-Type": "application/xml"}, s3_error("SlowDown")
        if heard.method == "PUT":
            return 200, {"ETag": ETAG}, b""
        span = heard.headers.get("range", "")
        if heard.method == "HEAD" or not span:
            return 200, {"ETag": ETAG, "Content-Length": str(len(self.data))}, self.data
        first, last = map(int, span.removeprefix("bytes=").split("-"))
        last = min(last, len(self.data) - 1)
        headers = {"ETag": ETAG, "Content-Range": f"bytes {first}-{last}/{len(self.data)}"}
        return 206, headers, self.data[first : last + 1]


def connected(listener: Listener, **options: object) -> CSXFileSystem:
    """A filesystem at a store."""
    return CSXFileSystem(key="key", secret="secret", endpoint_url=listener.url, skip_instance_cache=True, **options)


def read(fs: CSXFileSystem, count: int) -> None:
    """Read so many objects."""
    memories = [memoryview(bytearray(len(BODY))) for _ in range(count)]
    fs.readinto_objects([(f"bucket/{number}", 0, memory, len(BODY)) for number, memory in enumerate(memories)])
    assert all(memory == BODY for memory in memories)


@pytest.mark.parametrize(
    ("delay", "options", "least", "most"),
    [(0.05, {}, MIN_REQUESTS + 1, MAX_REQUESTS), (0.05, {"max_concurrency": 4}, 4, 4)],
)
def test_far_store(delay: float, options: dict[str, int], least: int, most: int) -> None:
    """A store whose answers take long gets many requests at a time, and never more than ``max_concurrency``."""
    store = Store(delay, together=least)
    with listening(store.answer) as listener:
        read(connected(listener, **options), 300 if most > 4 else 20)
    assert least <= max(store.at_a_time) <= most


@dataclass
class CopyingStore(Store):
    """A store of one large object, which it copies in parts.

    Attributes:
        parts: how many.
    """

    parts: int = 100

    def answer(self, heard: Heard) -> Answer:
        """Answer a request; only parts are counted."""
        if heard.method == "HEAD":
            time.sleep(self.delay)
            return 200, {"ETag": ETAG, "Content-Length": str(self.parts * COPIED_PART)}, b""
        if "partNumber=" in heard.path:
            with self._counted():
                time.sleep(self.delay)
            return _xml("CopyPartResult", f"<ETag>{ETAG}</ETag>")
        if heard.method == "GET":
            return _xml("Tagging", "<TagSet></TagSet>")
        time.sleep(self.delay)
        if "uploadId=" in heard.path:
            return _xml("CompleteMultipartUploadResult", f"<Bucket>b</Bucket><Key>k</Key><ETag>{ETAG}</ETag>")
        return _xml("InitiateMultipartUploadResult", "<Bucket>b</Bucket><Key>k</Key><UploadId>id</UploadId>")


def _xml(name: str, content: str) -> Answer:
    return 200, {"Content-Type": "application/xml"}, f"<{name}>{content}</{name}>".encode()


@pytest.mark.parametrize(
    ("delay", "options", "least", "most"),
    [(0.05, {}, 2, MIN_REQUESTS), (0.05, {}, MIN_REQUESTS + 1, MAX_REQUESTS), (0.05, {"max_concurrency": 4}, 4, 4)],
)
def test_copies_take_turns(
    monkeypatch: pytest.MonkeyPatch, delay: float, options: dict[str, int], least: int, most: int
) -> None:
    """Parts that the server copies take turns as all requests do."""
    if most == MIN_REQUESTS:  # a near store, from whose answers nothing is learned here
        monkeypatch.setattr(ConcurrencyLimit, "answered", lambda *_: None)
        monkeypatch.setattr(ConcurrencyLimit, "measured", lambda *_: None)
    store = CopyingStore(delay, parts=20 if options else 100, together=least)
    with listening(store.answer) as listener:
        fs = connected(listener, **options)
        fs.cp_file("bucket/one", "bucket/other")
    assert len(store.at_a_time) == store.parts
    assert least <= max(store.at_a_time) <= most


@pytest.mark.slow
def test_burst_of_refusals() -> None:
    """A store that is too busy gets fewer requests at a time, and more again afterwards; all objects come."""
    store = Store(0.05)
    with listening(store.answer) as listener:
        fs = connected(listener)
        read(fs, 200)
        before = fs.transfer.slots.limit
        store.most, store.together = 8, 9
        store.at_a_time.clear()
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
        store.delay, store.together = 0.05, MIN_REQUESTS // 2 + 1
        readers = [threading.Thread(target=read, args=(fs, 50)) for fs in (first, second)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert MIN_REQUESTS / 2 < max(store.at_a_time) <= MIN_REQUESTS
        third.connect()
        assert first.transfer.slots is second.transfer.slots is not third.transfer.slots


def test_transfer_does_not_wait_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer of many objects has no more tasks than requests in flight, so its threads need not take turns."""
    for name in ("answered", "measured"):
        monkeypatch.setattr(ConcurrencyLimit, name, lambda *_, **__: None)
    waiting: list[bool] = []
    store = Store(0.01, together=MIN_REQUESTS // 2 + 1)

    def answer(heard: Heard) -> Answer:
        waiting.append(fs.transfer.slots.contended)
        return store.answer(heard)

    with listening(answer) as listener:
        fs = connected(listener)
        read(fs, 50)
    assert max(store.at_a_time) > MIN_REQUESTS / 2
    assert not any(waiting)


LARGE = bytes(range(256)) * (48 * MIB // 256)


def test_last_round_is_full() -> None:
    """The requests of a read of a far store are equal, and the last ones keep nearly all connections busy."""
    for in_flight in (10, 64, 128):
        for size in range(2 * in_flight * MIB, 64 * in_flight * MIB, 77 * 10**6):
            part = size_for(size, in_flight, far=True)
            assert 2 * MIB <= part <= 8 * MIB
            rounds = size / part / in_flight
            assert rounds <= -(-size // (8 * MIB * in_flight)) < rounds + 0.1


@pytest.fixture
def far_store() -> Iterator[tuple[Store, CSXFileSystem, Listener]]:
    """A far store of a large object, and a filesystem that knows that it is far."""
    store = Store(0.03)
    with listening(store.answer) as listener:
        fs = connected(listener)
        read(fs, 100)
        assert fs.transfer.slots.limit > MIN_REQUESTS
        store.data = LARGE
        listener.heard.clear()
        store.at_a_time.clear()
        yield store, fs, listener


def test_sizes_of_requests(far_store: tuple[Store, CSXFileSystem, Listener], monkeypatch: pytest.MonkeyPatch) -> None:
    """A read of a far store is divided among the requests that are free: small ones too, less beside other reads."""
    transfer = far_store[1].transfer
    limit = transfer.slots.limit
    assert transfer.request_size(100) == transfer.request_size(limit * MIB) == MIB
    assert transfer.request_size(2 * limit * MIB) == 2 * MIB
    assert transfer.request_size(80 * limit * MIB) == 8 * MIB
    monkeypatch.setattr(transfer.slots, "_taken", limit)
    assert transfer.request_size(limit * MIB) == 8 * MIB
    assert transfer.buffered_bytes + 8 * MIB < 256 * MIB > transfer.ahead_bytes


def test_file_read_from_front_to_back(far_store: tuple[Store, CSXFileSystem, Listener]) -> None:
    """What torch.load reads next from a far store is fetched ahead: several requests run at a time."""
    store, fs, listener = far_store
    store.delay, store.together = 0.2, 5
    with fs.open("bucket/key", "rb") as file:
        for start in range(0, len(LARGE), 3 * MIB):
            memory = bytearray(3 * MIB - 100)
            assert file.readinto(memory) == len(memory)
            assert memory == LARGE[start : start + len(memory)]
            assert file.read(100) == LARGE[start + len(memory) : start + 3 * MIB]
    assert max(store.at_a_time) >= 5
    sent = [map(int, one.headers["range"].removeprefix("bytes=").split("-")) for one in listener.heard[1:]]
    assert sum(last - first + 1 for first, last in sent) < len(LARGE) + 2 * MIB


def test_processes_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks and workers of one node share its requests; each has ten at least, if it may."""
    shares = [(1, 64, 64), (4, 64, 64), (8, 64, 32), (100, 64, 10), (8, 4, 4), (1, 300, 300)]
    for ranks, most, share in shares:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert fair_share(most) == share
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    worker = torch.utils.data._utils.worker.WorkerInfo(
        id=0, num_workers=8, seed=0, dataset=torch.utils.data.TensorDataset(torch.zeros(1))
    )
    monkeypatch.setattr(torch.utils.data._utils.worker, "_worker_info", worker)
    assert fair_share(64) == 16


def test_far_store_that_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A far store is known by its answers to writes too, also where a busy thread is late to see that it has sent."""
    moved = RequestSlots.moved

    def late(self: RequestSlots, count: int) -> None:
        time.sleep(0.05)
        moved(self, count)

    monkeypatch.setattr(RequestSlots, "moved", late)
    with listening(Store(0.03).answer) as listener:
        fs = connected(listener)
        for number in range(2):
            fs.pipe_file(f"bucket/{number}", BODY)
        assert fs.transfer.slots.seems_far
        assert fs.transfer.slots.limit > MIN_REQUESTS


def test_refused_metadata_shows_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer to any request that the store is busy comes early, and does not make a far store a near one."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    store, refused = Store(0.03), []

    def answer(heard: Heard) -> Answer:
        if len(listener.heard) > 2 and not refused:
            refused.append(heard.method)
            return 503, {"Content-Type": "application/xml"}, s3_error("SlowDown")
        return store.answer(heard)

    with listening(answer) as listener:
        fs = connected(listener)
        for name in "abc":
            fs.info(f"bucket/{name}")
        assert refused == ["HEAD"]
        assert fs.transfer.slots.seems_far
        assert fs.transfer.slots.limit < 64


FORKED = """
import os, sys, fsspec
from fsspec_csx.s3.transport.concurrency import ConcurrencyLimit

for name in ("answered", "measured"):  # a busy machine answers as late as a far store
    setattr(ConcurrencyLimit, name, lambda *_, **__: None)
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
    subprocess.run([*python(), "-c", FORKED, f"{bucket}/key"], check=True, timeout=100)


def test_threads_and_connections_end_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept of a filesystem that reads no more: a process may make one for each of many credentials."""

    def connections() -> int:
        return sum("process_request" in thread.name for thread in threading.enumerate())  # the server has one for each

    with listening(Store(0.03, together=MIN_REQUESTS + 1).answer) as listener:
        fs = connected(listener)
        read(fs, 100)
        assert len(fs.transfer._threads) > MIN_REQUESTS
        assert connections() > MIN_REQUESTS
        monkeypatch.setattr("fsspec_csx.s3.transport.threads.IDLE_SECONDS", 0.1)
        read(fs, 1)
        deadline = time.monotonic() + 60
        while (len(fs.transfer._threads) or connections()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (len(fs.transfer._threads), connections()) == (0, 0)
        read(fs, 20)
