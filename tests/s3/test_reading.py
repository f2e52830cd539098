"""Reads return the object's bytes: through files, as whole objects and ranges, and to local files."""

from __future__ import annotations

import asyncio
import io
import itertools
import math
import os
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from conftest import recorded_requests
from fsspec.callbacks import Callback
from proxy import Fault, FaultProxy, Request, fault_proxy, through
from s3fs.utils import FileExpired

from fsspec_csx.errors import ObjectNotFoundError
from fsspec_csx.s3 import many_ranges, reader
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.readahead import Chunk, ReadAhead
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS
from fsspec_csx.s3.transport.event_loop import Work
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, coalesce
from fsspec_csx.s3.transport.transfer import Transfer
from fsspec_csx.testing import LocalS3

MIB = 2**20
DATA = os.urandom(40 * MIB + 54321)
SHORT = DATA[:1000]
PATH = "reading/object"


@pytest.fixture(scope="module", autouse=True)
def objects(server: LocalS3) -> None:
    """A large object, a small one and an empty one, in a bucket of the module's own."""
    fs = fsspec.filesystem("s3", **server.storage_options())
    fs.pipe({PATH: DATA, "reading/short": SHORT, "reading/empty": b""})


@pytest.fixture(scope="module")
def proxy(server: LocalS3) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with fault_proxy(server.endpoint_url) as running:
        yield running


@pytest.fixture(scope="module")
def slow(server: LocalS3, proxy: FaultProxy) -> CSXFileSystem:
    """A filesystem behind the proxy."""
    return through(proxy, server)


@pytest.fixture(autouse=True)
def unharmed(proxy: FaultProxy) -> None:
    """Each test begins without faults and without recorded requests."""
    proxy.faults, proxy.requests = [], []


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cache", ["parallel", "readahead", "none", "bytes", "all", "blockcache", "first", "background"]
)
@pytest.mark.parametrize("block_size", [50_000, None])
def test_like_a_local_file(fs: CSXFileSystem, cache: str, block_size: int | None) -> None:
    """Reads and seeks in any order bring what a local file would, with every kind of cache."""
    if cache == "background" and fsspec.__version__ < "2026":
        pytest.skip("older releases of fsspec fail at a read behind the end")
    chosen = random.Random(cache)
    mirror = io.BytesIO(DATA[: 3 * MIB])
    path = "reading/mirror"
    if not fs.exists(path):
        fs.pipe_file(path, mirror.getvalue())
    with fs.open(path, "rb", cache_type=cache, block_size=block_size) as file:
        for _ in range(40):
            position = chosen.choice([file.tell(), chosen.randrange(3 * MIB + 10), max(0, file.tell() - 70_000)])
            assert file.seek(position) == mirror.seek(position)
            length = chosen.choice([0, 1, 1000, 65_536, 300_000])
            if chosen.random() < 0.5:
                assert file.read(length) == mirror.read(length)
            else:
                mine, other = bytearray(length), bytearray(length)
                assert file.readinto(mine) == mirror.readinto(other)
                assert mine == other
            assert file.tell() == mirror.tell()
        file.seek(-10, 2)
        assert file.read() == mirror.getvalue()[-10:]
        assert file.read() == file.read(5) == b""


@pytest.mark.parametrize("first", [0, 10, MIB + 3])
def test_whole_files(fs: CSXFileSystem, first: int) -> None:
    """What is left is read at once, also after small reads, and from large reads into small ones."""
    with fs.open(PATH, "rb") as file:
        assert file.read(first) == DATA[:first]
        assert file.read(-1) == DATA[first:]
        assert file.read() == b""
        file.seek(5)
        buffer = bytearray(10 * MIB)
        assert file.readinto(buffer) == len(buffer)
        assert buffer == DATA[5 : 5 + len(buffer)]
        assert file.read(100_000) == DATA[5 + len(buffer) :][:100_000]


def test_lines(fs: CSXFileSystem) -> None:
    """Lines are those of a local file."""
    mirror = io.BytesIO(DATA[: 3 * MIB])
    fs.pipe_file("reading/lines", mirror.getvalue())
    with fs.open("reading/lines", "rb") as file:
        assert file.readline() == mirror.readline()
        assert file.readlines() == mirror.readlines()
        assert file.readlines() == mirror.readlines() == []
    with fs.open("reading/lines", "rb") as file:
        mirror.seek(0)
        assert list(file) == list(mirror)


@pytest.mark.parametrize("path", ["reading/empty", "reading/short"])
def test_small_files(fs: CSXFileSystem, path: str) -> None:
    """Small files and empty ones are read whole, by one request besides the opening's."""
    with recorded_requests() as operations, fs.open(path, "rb") as file:
        assert file.read() == (SHORT if "short" in path else b"")
        assert file.read(1) == b""
        assert file.readinto(np.zeros(0)) == 0
    assert operations == ["HeadObject", "GetObject"][: 1 + ("short" in path)]


def test_sequential_reads_are_ahead(slow: CSXFileSystem, proxy: FaultProxy) -> None:
    """A reader of small pieces takes few requests, several at a time."""
    with slow.open(PATH, "rb") as file:
        together = threading.Barrier(2, timeout=60)
        proxy.faults = [Fault("GET", skip=4, times=4, before=together.wait)]
        pieces = []
        while piece := file.read(64 * 1024):
            pieces.append(piece)
    assert b"".join(pieces) == DATA
    assert 8 < len(proxy.made("GET")) < 25
    assert not together.broken


def test_reader_never_waits_for_long(slow: CSXFileSystem, proxy: FaultProxy) -> None:
    """While the reader pauses, what it will read next comes: the next piece is there at once."""
    held = threading.Event()
    with slow.open(PATH, "rb") as file:
        file.read(2 * MIB)
        file.read(64 * 1024)
        next_byte = file.tell() + 64 * 1024
        while not any(one.ended and one.span and one.span[0] < next_byte <= one.span[1] for one in proxy.requests):
            time.sleep(0.01)
        proxy.faults = [Fault("GET", times=1000, before=lambda: held.wait(60))]
        began = time.monotonic()
        file.read(64 * 1024)
        assert time.monotonic() - began < 50
        held.set()


def test_large_reads_use_buffers_again(fs: CSXFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ahead of large reads comes into a bounded number of buffers, also with small reads between."""
    monkeypatch.setattr(Transfer, "ahead_bytes", property(lambda _: 16 * MIB))
    with fs.open(PATH, "rb", block_size=32 * MIB) as file:
        buffers, position = set(), 0
        for size in itertools.cycle((5 * MIB, 30, 3 * MIB + 1, 2 * MIB)):
            memory = bytearray(size)
            count = file.readinto(memory)
            assert memory[:count] == DATA[position : position + count]
            position += count
            buffers |= {id(chunk.lent) for chunk in file.cache._chunks if chunk.lent is not None}
            if count < size:
                break
        assert position == len(DATA)
        assert 2 <= len(buffers) <= 4
        assert not file.cache._free, "nothing is left to fetch into them"
        file.seek(MIB)
        assert file.read(1000) == DATA[MIB : MIB + 1000]
        assert not file.cache._free


def test_buffers_are_not_filled_anew_while_another_thread_reads(
    fs: CSXFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where threads share a file without a lock, a large read of one does not reuse the buffer that another reads."""
    monkeypatch.setattr(Transfer, "ahead_bytes", property(lambda _: 16 * MIB))

    def read_more() -> None:
        for _ in range(3):
            file.readinto(bytearray(6 * MIB))

    other = threading.Thread(target=read_more)

    class Meanwhile(Future[memoryview]):
        def result(self, timeout: float | None = None) -> memoryview:
            data: memoryview = arrived.result()
            chunk.data = arrived
            other.start()
            other.join(0.3)  # it has to wait for this thread
            return data

    with fs.open(PATH, "rb", block_size=32 * MIB) as file:
        for _ in range(2):
            file.readinto(bytearray(2 * MIB))
        start = file.tell() + MIB
        file.seek(start)
        chunk = next(each for each in file.cache._chunks if each.start <= start < each.end - MIB)
        assert chunk.lent is not None
        arrived, chunk.data = chunk.data, Meanwhile()
        assert file.read(1000) == DATA[start : start + 1000]
        other.join()


def test_what_another_thread_forgets_meanwhile() -> None:
    """Where threads share a file without a lock, what one of them forgets while another one reads is fetched again."""
    data, meanwhile = os.urandom(2 * MIB), list[Callable[[], object]]()

    def fetch(start: int, end: int) -> Future[bytes]:
        if meanwhile:
            meanwhile.pop()()
        fetched = Future[bytes]()
        fetched.set_result(data[start:end])
        return fetched

    cache = ReadAhead(MIB, fetch, lambda start, memory: Future(), len(data))
    assert cache._fetch(0, 1000) == data[:1000]
    meanwhile.append(cache._chunks.clear)
    assert cache._fetch(200 * 1024, 300 * 1024) == data[200 * 1024 : 300 * 1024]


def test_caller_may_resize_the_memory_at_once() -> None:
    """Pages that no thread came to allocate are forgotten, though the call for them waits for a thread."""
    queued, data = list[tuple[Any, ...]](), Future[bytes]()
    data.set_result(DATA[: 9 * MIB])
    memory = bytearray(9 * MIB)

    def in_thread(*call: Any) -> Future[None]:
        queued.append(call)
        return Future()

    cache = ReadAhead(32 * MIB, lambda start, end: Future(), lambda start, memory: Future(), len(DATA))
    cache.fill(memoryview(memory), 0, [Chunk(0, 9 * MIB, data)], in_thread)
    assert queued
    memory.extend(b"more")
    assert memory == DATA[: 9 * MIB] + b"more"


def test_requests_that_have_ended_hold_no_memory(fs: CSXFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a read has returned, its memory may be resized, though a thread may still refer to the work or a request."""
    kept = list[Any]()

    def keep(kind: type) -> None:
        init = kind.__init__  # type: ignore[misc]
        monkeypatch.setattr(kind, "__init__", lambda self, *a, **k: init(self, *a, **k) or kept.append(self))

    keep(Work)
    keep(RangeRequest)
    fs.connect()
    for requests in (MIN_REQUESTS, 64):
        with fs.transfer.slots.fixed(requests), fs.open(PATH, "rb") as file:
            for start in (0, 10 * MIB):
                memory, other = bytearray(9 * MIB), bytearray(MIB)
                assert file.readinto(memory) == 9 * MIB
                file.readinto_many([(start + 3, memoryview(other))], crc32=True)
                memory.extend(b"more")
                other.extend(b"more")
                assert memory == DATA[start : start + 9 * MIB] + b"more"
                assert other == DATA[start + 3 : start + 3 + MIB] + b"more"
                file.seek(10 * MIB)
    assert len(kept) > 10


def test_closed_while_another_thread_reads(fs: CSXFileSystem) -> None:
    """A closed file refuses to read, whatever a read that was still running has put into its cache."""
    file = fs.open(PATH, "rb")
    held = file.read(10)
    cache, before = file.cache, file.cache._recent
    file.close()
    cache._recent = before
    for read in (lambda: file.read(10), lambda: file.readinto(bytearray(10))):
        with pytest.raises(ValueError, match="closed"):
            read()
    assert held == DATA[:10]


class Arriving(Future[bytes]):
    """Bytes that arrive when they are waited for."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = data

    def result(self, timeout: float | None = None) -> bytes:
        if not self.done():
            self.set_result(self._data)
        return super().result(timeout)


def test_more_is_ahead_of_a_reader_that_waits() -> None:
    """Requests become larger while the reader has to wait for them, and stay small where the data is always there."""

    def lengths_of_requests(*, waits: bool) -> list[int]:
        lengths = []

        def fetch(start: int, end: int) -> Future[bytes]:
            lengths.append(end - start)
            arriving = Arriving(DATA[start:end])
            if not waits:
                arriving.result()
            return arriving

        cache = ReadAhead(32 * MIB, fetch, lambda start, memory: Future(), len(DATA))
        for start in range(0, len(DATA), MIB // 4):
            assert cache._fetch(start, start + MIB // 4) == DATA[start : start + MIB // 4]
        assert sum(lengths) == len(DATA)
        return lengths

    assert max(lengths_of_requests(waits=False)) == MIB
    assert max(lengths_of_requests(waits=True)) == 4 * MIB


def _read_backwards(size: int) -> Iterator[int]:
    return iter(range(size - 64 * 1024, 0, -64 * 1024))


def _read_many_places_in_turn(size: int) -> Iterator[int]:
    return (place + offset for offset in range(0, 6 * MIB, 4096) for place in range(0, size, size // 10))


def _read_at_random(size: int) -> Iterator[int]:
    chosen = random.Random(1)
    return (chosen.randrange(size) for _ in range(3000))


@pytest.mark.parametrize(
    ("places", "length", "block_size"),
    [
        (_read_backwards, 64 * 1024, 50 * MIB),
        (_read_many_places_in_turn, 4096, 50 * MIB),
        (_read_at_random, 4096, 4096),
    ],
)
def test_little_is_kept_and_fetched_in_vain(
    places: Callable[[int], Iterator[int]], length: int, block_size: int
) -> None:
    """Whatever the order of the reads, what is kept is bounded, and little is fetched twice or for nothing."""
    size, fetched, used = 150 * MIB, 0, 0

    def fetch(start: int, end: int) -> Future[bytes]:
        nonlocal fetched
        fetched += end - start
        return Arriving(bytes(end - start))

    cache = ReadAhead(block_size, fetch, lambda start, memory: Future(), size)
    for place in places(size):
        used += len(cache.recent_bytes(place, length) or cache._fetch(place, place + length))
        assert sum(chunk.end - chunk.start for chunk in cache._chunks) < 36 * MIB
        assert len(cache._chunks) < 300
    assert fetched < 1.5 * used


@pytest.mark.parametrize("size", [12 * MIB, 150 * MIB])
def test_many_open_files_keep_less_each(size: int) -> None:
    """A program may open hundreds of files and read a little of each; closed ones do not count."""

    def fetch(start: int, end: int) -> Future[bytes]:
        return Arriving(bytes(end - start))

    caches = [ReadAhead(50 * MIB, fetch, lambda start, memory: Future(), size, lambda: 16 * MIB) for _ in range(99)]
    for position in (0, *range(10 * MIB, size, 7 * MIB)):
        for cache in caches:
            cache._fetch(position, position + 1000)
        assert sum(chunk.end - chunk.start for cache in caches for chunk in cache._chunks) < 400 * MIB
    for cache in caches:
        cache.clear()
    for position in range(0, size, 5 * MIB):
        caches[0]._fetch(position, position + 1000)
    kept = sum(chunk.end - chunk.start for chunk in caches[0]._chunks)
    assert kept == size if size < 16 * MIB else kept > 7 * MIB


def test_random_reads_take_one_request_each(fs: CSXFileSystem) -> None:
    """A small read at a new place makes one request, for little more than its bytes."""
    chosen = random.Random(1)
    with fs.open(PATH, "rb") as file, recorded_requests() as operations:
        for number in range(1, 20):
            position = (number * 17 % 40) * MIB + chosen.randrange(1000)
            file.seek(position)
            assert file.read(1000) == DATA[position : position + 1000]
            assert operations == ["GetObject"] * number


def test_zip_files_in_a_file(fs: CSXFileSystem) -> None:
    """A reader that begins with the end of each piece, and goes back in it, still reads from front to back."""
    size = 67_000
    with fs.open(PATH, "rb") as file, recorded_requests() as operations:
        for start in range(0, 300 * size, size):
            for first, last in ((0, 8), (size - 4096, size), (200, 300), (700, size - 1500)):
                file.seek(start + first)
                assert file.read(last - first) == DATA[start + first : start + last]
    assert operations == ["GetObject"] * len(operations)
    assert len(operations) < 25


def test_zip_file_is_read_ahead(fs: CSXFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from the store, what follows the first large record of a zip file comes early; of other files it does not."""
    monkeypatch.setattr(Transfer, "ahead_bytes", property(lambda _: 32 * MIB))
    near = 5 * MIB + 64 * 1024
    beyond = [(near + start, near + start + 8 * MIB) for start in range(0, 24 * MIB, 8 * MIB)]
    for ending, ahead in ((b"PK\x05\x06" + bytes(18), beyond), (bytes(22), [])):
        fs.pipe_file("reading/zip", DATA + ending)
        with fs.open("reading/zip", "rb", block_size=32 * MIB) as file:
            end = bytearray(22)
            file.seek(-22, 2)
            assert file.readinto(end) == 22
            assert end == ending
            file.seek(MIB)
            record = bytearray(4 * MIB)
            assert file.readinto(record) == len(record)
            assert record == DATA[MIB : 5 * MIB]
            chunks = [(chunk.start, chunk.end) for chunk in file.cache._chunks if chunk.end < file.size]
            assert chunks == [(5 * MIB, 5 * MIB + 64 * 1024), *ahead]
            assert file.readinto(record) == len(record)
            assert record == DATA[5 * MIB : 9 * MIB]


def test_records_are_requested_with_the_end(server: LocalS3, proxy: FaultProxy) -> None:
    """A reader of a zip file gets the first records without waiting for the end of the file to arrive."""
    archive = b"PK\x03\x04" + DATA + b"PK\x05\x06" + bytes(18)
    fs = through(proxy, server)
    fs.pipe_file("reading/records", archive)
    records, in_time = threading.Event(), list[bool]()
    proxy.faults = [
        Fault("GET", when=lambda one: last(one) == len(archive), before=lambda: in_time.append(records.wait(8))),
        Fault("GET", when=lambda one: last(one) > 4 * MIB, before=records.set),
    ]
    with fs.open("reading/records", "rb") as file:
        assert file.read(4) == archive[:4]
        file.seek(-22, 2)
        assert file.read() == archive[-22:]
    assert in_time == [True]


def last(request: Request) -> int:
    """The end of the range of a request."""
    return request.span[1] if request.span else 0


@pytest.mark.parametrize("length", [256, 2048])
def test_torch_reads_an_archive_by_few_requests(fs: CSXFileSystem, length: int) -> None:
    """torch.load begins at both ends: one request each for a large archive, and one for each MiB between them."""
    state, archive = {str(number): torch.full((length,), number) for number in range(1000)}, io.BytesIO()
    torch.save(state, archive)
    fs.pipe_file("reading/archive", archive.getvalue())
    with recorded_requests() as operations, fs.open("reading/archive", "rb") as file:
        loaded = torch.load(file, weights_only=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert operations == ["HeadObject"] + ["GetObject"] * (len(operations) - 1)
    assert len(operations) <= 1 + math.ceil(archive.tell() / MIB) + 2 * (length == 2048)


def test_small_files_are_fetched_at_once(fs: CSXFileSystem) -> None:
    """However a small file is read, each MiB is fetched once: of a far store, files are small up to 16 MiB."""
    fs.connect()
    for requests, size in ((MIN_REQUESTS, 3 * MIB), (64, 12 * MIB)):
        fs.pipe_file("reading/small", DATA[:size])
        with fs.transfer.slots.fixed(requests), fs.open("reading/small", "rb") as file:
            with recorded_requests() as operations:
                for position in (100, 2 * MIB, 100_000, size - 10, 300_000, MIB, size // 2):
                    file.seek(position)
                    assert file.read(1000) == DATA[position:size][:1000]
            assert 1 <= len(operations) <= 12
            assert sum(chunk.end - chunk.start for chunk in file.cache._chunks) == size - 100


@pytest.mark.parametrize(("size", "requests"), [(3 * MIB, 1), (12 * MIB, 12)])
def test_file_of_a_far_store_that_is_read_whole(fs: CSXFileSystem, size: int, requests: int) -> None:
    """It is divided as any large read, since nothing else is read meanwhile."""
    fs.pipe_file("reading/whole", DATA[:size])
    with fs.transfer.slots.fixed(64), fs.open("reading/whole", "rb") as file, recorded_requests() as operations:
        assert file.read() == DATA[:size]
    assert operations == ["GetObject"] * requests


def test_hdf5_takes_few_requests(fs: CSXFileSystem) -> None:
    """A reader that goes to an index for each piece, and back, does not fetch either again each time."""
    h5py = pytest.importorskip("h5py")
    target = io.BytesIO()
    with h5py.File(target, "w") as written:
        for number in range(100):
            data = np.full(12_500, number, dtype=np.float64)
            written.create_dataset(f"group{number // 20}/data{number}", data=data).attrs["number"] = number
    fs.pipe_file("reading/hdf5", target.getvalue())
    with recorded_requests() as operations, fs.open("reading/hdf5", "rb") as opened, h5py.File(opened) as file:
        for number in range(100):
            data = file[f"group{number // 20}/data{number}"]
            assert data.attrs["number"] == number
            assert (data[...] == number).all()
    assert len(operations) < 30


def test_two_places_are_read_in_turn(fs: CSXFileSystem) -> None:
    """A reader that alternates between two places reads both ahead; one that skips little is sequential."""
    step = 50_000
    alternating = [place for start in range(0, 5 * MIB, step) for place in (start, 20 * MIB + start)]
    for places in (alternating, range(0, 30 * MIB, 400_000)):
        with fs.open(PATH, "rb") as file, recorded_requests() as operations:
            for position in places:
                file.seek(position)
                assert file.read(step) == DATA[position : position + step]
        assert len(operations) < 40


def test_end_of_a_file_is_kept(fs: CSXFileSystem) -> None:
    """A reader that begins at the end takes few requests for it, and reads elsewhere meanwhile; little is kept."""
    step = 50_000
    with fs.open(PATH, "rb") as file, recorded_requests() as operations:
        for end in range(len(DATA), len(DATA) - 4 * MIB, -step):
            file.seek(end - step)
            assert file.read(step) == DATA[end - step : end]
            assert sum(chunk.end - chunk.start for chunk in file.cache._chunks) < 5 * MIB
        assert len(operations) < 80
        operations.clear()
        for position in (0, 100, len(DATA) - MIB, len(DATA) - 1, 1000, len(DATA) - 10):
            file.seek(position)
            piece = bytearray(min(50, len(DATA) - position))
            assert file.readinto(piece) == len(piece)
            assert piece == DATA[position:][:50]
        assert operations == ["GetObject"]
    for size in (0, 10):
        with pytest.raises(ValueError, match="closed"):
            file.readinto(bytearray(size))


# -- vectored reads ---------------------------------------------------------------------------------------------------


def spans_of(pairs: list[tuple[int, int]]) -> list[tuple[int, memoryview]]:
    """Spans with memories of their own, for positions and lengths."""
    return [(position, memoryview(bytearray(length))) for position, length in pairs]


FAR = [(30 * MIB, 100), (0, 5 * MIB), (2 * MIB, 5 * MIB), (20 * MIB, 0), (len(DATA) - 3, 3), (len(DATA), 0)]
TINY = [(MIB + 150 * number, 100) for number in range(2000)]
MIXED = [
    (position, length)
    for start in range(0, 9 * MIB, MIB)
    for position, length in ((start, 10), (start + 99, MIB - 200))
]


@pytest.mark.parametrize(
    ("pairs", "requests"), [(FAR, 6), (TINY, 1), (TINY[::-1], 1), (MIXED, 3), ([(7, len(DATA) - 7)], 10), ([], 0)]
)
def test_vectored_reads(fs: CSXFileSystem, pairs: list[tuple[int, int]], requests: int) -> None:
    """Spans in any order, far or near, overlapping or empty, are filled by few requests, with checksums."""
    spans = spans_of(pairs)
    report: list[int] = []
    with fs.open(PATH, "rb") as file:
        file.seek(77)
        with recorded_requests() as operations:
            sums = file.readinto_many(spans, advance=report.append, crc32=True)
        assert file.tell() == 77
        assert file.readinto_many(spans) == []
    for (position, memory), crc in zip(spans, sums, strict=True):
        assert memory == DATA[position : position + len(memory)]
        assert crc == zlib.crc32(memory)
    assert operations == ["GetObject"] * requests
    assert sum(report) >= sum(length for _, length in pairs)


def test_vectored_reads_beyond_the_end(fs: CSXFileSystem) -> None:
    """A span that the file does not reach is refused, and nothing is read."""
    with fs.open(PATH, "rb") as file, recorded_requests() as operations:
        for position, length in ((len(DATA), 1), (len(DATA) - 1, 2), (-1, 1)):
            with pytest.raises(ValueError, match=f"{len(DATA)} bytes"):
                file.readinto_many(spans_of([(position, length)]))
    assert operations == []


def test_plans_cover_all() -> None:
    """Whatever the spans are, the ranges hold each of their bytes exactly once, and none is larger than a part."""
    chosen = random.Random(2)
    for _ in range(300):
        pairs = [(chosen.randrange(5000), chosen.choice([0, 1, 10, 400, 70_000, 200_000])) for _ in range(6)]
        part = chosen.choice([100_000, 131_072, 1_000_000])
        spans = spans_of(pairs)
        source = np.arange(300_000, dtype=np.uint32).view(np.uint8)[: 5000 + 200_000].tobytes()
        for each in coalesce(spans, part):
            assert 0 < each.length <= part
            while len(memory := each.next_buffer(each.length)):
                memory[:] = source[each.start + each.filled :][: len(memory)]
                each.advance(len(memory))
        assert all(memory == source[position : position + len(memory)] for position, memory in spans)


def test_small_spans_side_by_side() -> None:
    """Small buffers are filled by few reads, also without gaps between them; large ones are filled directly."""
    small = [(400 * number, memoryview(bytearray(400))) for number in range(3000)]
    for spans, reads in ((small, 2), ([*small, (400 * 3000, memoryview(bytearray(200_000)))], 3)):
        source = os.urandom(1_400_000)
        (each,) = coalesce(spans, 2 * MIB, zlib.crc32)
        count = 0
        while len(memory := each.next_buffer(each.length)):
            memory[:] = source[each.filled : each.filled + len(memory)]
            each.advance(len(memory))
            count += 1
        assert count == reads
        assert all(memory == source[position : position + len(memory)] for position, memory in spans)
        sums = {span: checksum for span, _, checksum, _ in each.checksums()}
        assert [sums[number] for number in range(len(spans))] == [zlib.crc32(memory) for _, memory in spans]


def test_many_spans_leave_the_event_loop_free(fs: CSXFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many spans are planned, and their checksums combined, in other threads than that of the event loop."""
    threads = list[threading.Thread]()

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: threads.append(threading.current_thread()) or function(*args)

    for owner, name in ((reader, "coalesce"), (reader, "checksums"), (many_ranges, "coalesce")):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name)))
    monkeypatch.setattr("fsspec_csx.s3.transport.threads._MANY", 20)
    spans = [(9 * number, memoryview(bytearray(7))) for number in range(30)]

    async def thread_of_loop() -> threading.Thread:
        return threading.current_thread()

    with fs.open(PATH, "rb") as file:
        sums = file.readinto_many(spans, crc32=True)
    found = fs.cat_ranges([PATH] * 30, [start for start, _ in spans], [start + 7 for start, _ in spans])
    assert [bytes(memory) for _, memory in spans] == found == [DATA[start : start + 7] for start, _ in spans]
    assert sums == [zlib.crc32(each) for each in found]
    assert len(threads) == 3
    assert asyncio.run_coroutine_threadsafe(thread_of_loop(), fs.loop).result(60) not in threads


# -- whole objects and ranges -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [None, 0, 1, 999, 1000, 5000, -1, -1000, -5000])
def test_cat_file_of_small_ranges(fs: CSXFileSystem, start: int | None) -> None:
    """Every start and end bring what a slice would."""
    for end in (None, 0, 1, 1000, 5000, -1, -999, -5000):
        assert fs.cat_file("reading/short", start=start, end=end) == SHORT[start:end], end
        assert fs.cat_file("reading/empty", start=start, end=end) == b"", end


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, None),
        (0, MIN_REQUEST),
        (0, MIN_REQUEST + 1),
        (1, -1),
        (5, None),
        (len(DATA) - 9, 2 * len(DATA)),
        (-9 * MIB, None),
    ],
)
def test_cat_file_of_a_large_object(fs: CSXFileSystem, start: int | None, end: int | None) -> None:
    """So do those that take many requests."""
    assert fs.cat_file(PATH, start=start, end=end) == DATA[start:end]


@pytest.mark.parametrize(("start", "end"), [(None, None), (10, 20), (0, 5000)])
def test_cat_file_of_a_small_object_is_one_request(fs: CSXFileSystem, start: int | None, end: int | None) -> None:
    """A small object, or a small range, is read without asking for its size before."""
    with recorded_requests() as operations:
        assert fs.cat_file("reading/short", start=start, end=end) == SHORT[start:end]
    assert operations == ["GetObject"]


@pytest.mark.parametrize(("size", "requests"), [(MIN_REQUEST, 1), (5 * MIB, 1), (5 * MIB + 1, 2)])
def test_requests_of_a_whole_object(fs: CSXFileSystem, bucket: str, tmp_path: Path, size: int, requests: int) -> None:
    """An object with little more than one request reads is read to its end by this request."""
    fs.pipe_file(f"{bucket}/object", DATA[:size])
    with recorded_requests() as operations:
        assert fs.cat_file(f"{bucket}/object") == DATA[:size]
        fs.get_file(f"{bucket}/object", str(tmp_path / "local"))
    assert (tmp_path / "local").read_bytes() == DATA[:size]
    assert operations == ["GetObject"] * 2 * requests


@pytest.mark.parametrize("kind", [list, np.array])
def test_cat_ranges(fs: CSXFileSystem, kind: Any) -> None:
    """Ranges of many objects are returned in the order of the call; one request reads nearby ones of one object."""
    starts = [100 * number for number in range(50)] + [0, 30 * MIB]
    ends = [start + 50 for start in starts]
    with recorded_requests() as operations:
        found = fs.cat_ranges([PATH] * 50 + ["reading/short", PATH], kind(starts), kind(ends))
    assert found[:50] == [DATA[start : start + 50] for start in starts[:50]]
    assert found[50:] == [SHORT[:50], DATA[30 * MIB :][:50]]
    assert operations.count("GetObject") == 3
    assert fs.cat_ranges([PATH, "reading/short"], 5, -5) == [DATA[5:-5], SHORT[5:-5]]
    assert fs.cat_ranges(["reading/short"] * 3, [None, -3, 2000], [2, None, 3000]) == [SHORT[:2], SHORT[-3:], b""]


def test_cat_ranges_of_missing_objects(fs: CSXFileSystem) -> None:
    """An object that is missing is an error in its place, or of the whole call."""
    paths = ["reading/short", "reading/missing", "reading/missing"]
    found = fs.cat_ranges(paths, 0, 10)
    assert found[0] == SHORT[:10]
    assert all(isinstance(each, ObjectNotFoundError) for each in found[1:])
    with pytest.raises(ObjectNotFoundError):
        fs.cat_ranges(paths, 0, 10, on_error="raise")
    with pytest.raises(ValueError, match="2 starts"):
        fs.cat_ranges(paths, [0, 1], 10)


def test_versions(server: LocalS3, bucket: str) -> None:
    """Former versions are read, whole or in part, large or small."""
    fs = fsspec.filesystem("s3", **server.storage_options(), version_aware=True)
    fs.make_bucket_versioned(bucket)
    large = DATA[: MIN_REQUEST + 10]
    fs.pipe_file(f"{bucket}/object", large)
    former = fs.object_version_info(f"{bucket}/object")[0]["VersionId"]
    fs.pipe_file(f"{bucket}/object", b"new")
    assert fs.cat_file(f"{bucket}/object", version_id=former) == large
    assert fs.cat_file(f"{bucket}/object?versionId={former}") == large
    assert fs.cat_file(f"{bucket}/object", version_id=former, start=-10) == large[-10:]
    assert fs.cat_file(f"{bucket}/object") == b"new"


def test_stale_listing_is_no_obstacle(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A range is read of the object that there is, though a listing remembers another."""
    fs.pipe_file(f"{bucket}/object", b"old" * 1000)
    listing = fsspec.filesystem("s3", **server.storage_options(), skip_instance_cache=True)
    listing.ls(bucket)
    fs.pipe_file(f"{bucket}/object", DATA[: 2 * MIN_REQUEST])
    assert listing.cat_file(f"{bucket}/object", start=-MIN_REQUEST - 1) == DATA[MIN_REQUEST - 1 : 2 * MIN_REQUEST]
    fs.pipe_file(f"{bucket}/object", b"new" * 100)
    listing.ls(bucket, refresh=True)
    fs.pipe_file(f"{bucket}/object", b"last" * 100)
    assert listing.cat_ranges([f"{bucket}/object"] * 2, [0, 396], [4, 400]) == [b"last", b"last"]


# -- local files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "expected"), [(PATH, DATA), ("reading/short", SHORT), ("reading/empty", b"")])
def test_get_file(fs: CSXFileSystem, tmp_path: Path, path: str, expected: bytes) -> None:
    """An object becomes a local file, and the callback hears of all its bytes."""
    callback = Callback()
    fs.get_file(path, str(tmp_path / "file"), callback=callback)
    assert (tmp_path / "file").read_bytes() == expected
    assert (callback.size, callback.value) == (len(expected), len(expected))
    assert sorted(os.listdir(tmp_path)) == ["file", "home"]


def test_get_file_takes_the_place_of_a_file(fs: CSXFileSystem, tmp_path: Path) -> None:
    """A former file keeps its mode, and a link to it stays a link."""
    (tmp_path / "file").write_bytes(DATA[: 2 * MIB])
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    fs.get_file("reading/short", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == SHORT
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("resumable", [True, False])
def test_get_file_below_a_link_that_is_changed(fs: CSXFileSystem, tmp_path: Path, resumable: bool) -> None:
    """The file goes to the folder that a link led to at the start, and nothing else is left."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("first")

    class Changing(Callback):
        def set_size(self, size: int) -> None:
            link.unlink()
            link.symlink_to("second")

    fs.get_file(PATH, str(link / "file"), callback=Changing(), resumable=resumable)
    assert (tmp_path / "first" / "file").read_bytes() == DATA
    assert [os.listdir(tmp_path / name) for name in ("first", "second")] == [["file"], []]


def test_get_file_by_a_path_that_names_no_folder(fs: CSXFileSystem, tmp_path: Path) -> None:
    """A slash after a name, and a missing folder before "..", make no difference."""
    fs.get_file("reading/short", f"{tmp_path}/new/")
    fs.get_file("reading/short", f"{tmp_path}/missing/../other")
    assert (tmp_path / "new").read_bytes() == (tmp_path / "other").read_bytes() == SHORT


def test_get_file_into_devices(fs: CSXFileSystem, tmp_path: Path) -> None:
    """A device or a pipe is written to, and stays what it is."""
    fs.get_file("reading/short", "/dev/null")
    assert Path("/dev/null").is_char_device()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    fs.get_file("reading/short", str(tmp_path / "pipe"))
    assert os.read(reader, 2000) == SHORT
    os.close(reader)


@pytest.mark.parametrize("path", ["reading/missing", "missing-bucket/object"])
def test_get_file_that_fails(fs: CSXFileSystem, tmp_path: Path, path: str) -> None:
    """A failed download leaves the former file, and nothing beside it."""
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileNotFoundError):
        fs.get_file(path, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["file", "home"]


def test_replaced_between_the_reads_of_a_file(fs: CSXFileSystem, bucket: str) -> None:
    """What was opened is read as it was, or an error says that it is gone; never a mixture."""
    fs.pipe_file(f"{bucket}/object", DATA[: 5 * MIB])
    with fs.open(f"{bucket}/object", "rb") as file:
        file.read(10)
        fs.pipe_file(f"{bucket}/object", DATA[5 * MIB : 10 * MIB])
        with pytest.raises(FileExpired):
            file.read()
        with pytest.raises(FileExpired):
            file.readinto(bytearray(4 * MIB))
        for _ in range(2):
            file.seek(-10, 2)
            with pytest.raises(FileExpired):
                file.read(10)
