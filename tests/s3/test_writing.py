"""Writes store the bytes exactly: through files, from memory, from local files and from objects."""

from __future__ import annotations

import array
import base64
import gzip
import hashlib
import itertools
import mmap
import os
import sys
import threading
import time
import tracemalloc
import uuid
import zlib
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from conftest import recorded_requests
from fsspec.callbacks import Callback
from proxy import Fault, FaultProxy, Request, error_answer, through
from stores import uploads_below
from thinning import thinned

from fsspec_csx.errors import AccessDeniedError, ObjectChangedError, ObjectExistsError
from fsspec_csx.formats.safetensors.writer import file_of
from fsspec_csx.s3 import part_sizes, server_copy, writer
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.part_sizes import PARTS, part_size, part_size_for
from fsspec_csx.s3.transport import request_queue
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS, RequestSlots
from fsspec_csx.s3.transport.event_loop import Work
from fsspec_csx.s3.transport.transfer import PART
from fsspec_csx.testing import LocalS3

MIB = 2**20
BUCKET = "writing"
BLOCK = 5 * MIB
DATA = os.urandom(3 * BLOCK + 4321)
SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 17]
PIECES = [1, 1, 1000, 4096, 100_001, MIB + 1]
FEW_SIZES = [0, BLOCK, BLOCK + 17]


@pytest.fixture(scope="module", autouse=True)
def bucket(server: LocalS3) -> None:
    """A bucket of the module's own."""
    fsspec.filesystem("s3", **server.storage_options()).makedirs(BUCKET, exist_ok=True)


@pytest.fixture
def folder() -> str:
    """A folder of the test's own, in a bucket that they share: the first write of a bucket takes the server long."""
    return f"{BUCKET}/{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore waits for a random time before a retry."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)


def crc64nvme(data: bytes) -> str:
    """A checksum, as S3 writes it."""
    return CRC64NVME.encoded(CRC64NVME.compute(memoryview(data), 0))


def head_of(fs: CSXFileSystem, path: str) -> dict[str, Any]:
    """What the server says of an object, its checksums too."""
    bucket, _, key = path.partition("/")
    return dict(fs.call_s3("head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED"))


def parts(proxy: FaultProxy) -> list[Request]:
    """The parts that were sent, by their numbers."""
    sent = [one for one in proxy.made("PUT", "partNumber=") if one.status == 200]
    return sorted(sent, key=lambda one: int(one.query.split("partNumber=")[1].split("&")[0]))


def sizes(requests: list[Request]) -> list[int]:
    """Bytes of each body."""
    return [int(one.headers["content-length"]) for one in requests]


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "piece"), [*((size, None) for size in SIZES), *zip(SIZES, PIECES, strict=True)])
def test_sizes(fs: CSXFileSystem, folder: str, size: int, piece: int | None) -> None:
    """Any number of bytes, in one write or many, is the object; up to a part by one request, larger ones by parts."""
    with recorded_requests() as operations, fs.open(f"{folder}/object", "wb", block_size=BLOCK) as file:
        for start in range(0, size, piece or max(size, 1)):
            assert file.write(DATA[start : min(start + piece, size) if piece else size]) > 0
        assert file.tell() == size
    assert fs.cat_file(f"{folder}/object") == DATA[:size]
    if size <= BLOCK:
        assert operations == ["PutObject"]
    else:
        many = ["UploadPart"] * -(-size // BLOCK)
        assert operations == ["CreateMultipartUpload", *many, "CompleteMultipartUpload"]
    assert head_of(fs, f"{folder}/object")["ChecksumCRC64NVME"] == crc64nvme(DATA[:size])


def mapped() -> mmap.mmap:
    """Memory of the system that holds the data."""
    memory = mmap.mmap(-1, len(TWO_PARTS))
    memory[:] = TWO_PARTS
    return memory


TWO_PARTS = DATA[: BLOCK + 4800]
BUFFERS = {
    "bytearray": lambda: bytearray(TWO_PARTS),
    "memoryview": lambda: memoryview(TWO_PARTS).cast("d"),
    "read-only": lambda: memoryview(TWO_PARTS).toreadonly(),
    "array": lambda: array.array("q", TWO_PARTS),
    "numpy": lambda: np.frombuffer(TWO_PARTS, dtype=np.int16).reshape(4, -1),
    "mmap": mapped,
}


@pytest.mark.parametrize("kind", thinned(BUFFERS, "memoryview", "mmap"))
@pytest.mark.parametrize("method", ["write", "write_borrowed", "pipe_file"])
def test_buffers(fs: CSXFileSystem, folder: str, kind: str, method: str) -> None:
    """Any contiguous memory is written, whatever its items are."""
    buffer = BUFFERS[kind]()
    if method == "pipe_file":
        fs.pipe_file(f"{folder}/object", buffer, chunksize=BLOCK)
    else:
        with fs.open(f"{folder}/object", "wb", block_size=BLOCK) as file:
            assert getattr(file, method)(buffer) == len(TWO_PARTS)
            assert file.write(np.zeros((0, 3))) == 0
    assert fs.cat_file(f"{folder}/object") == TWO_PARTS


def test_unknown_size(server: LocalS3, folder: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts have 5 MiB, or 8 MiB with a near store, whatever the pieces are; the order of the bytes is kept."""
    fs = through(proxy, server)
    fs.connect()
    pieces = [DATA[:100], DATA[100:3000], DATA[3000 : 6 * MIB], DATA[6 * MIB : 6 * MIB + 10], DATA[6 * MIB + 10 :]]
    reused, buffers = bytearray(len(DATA)), list[int]()
    monkeypatch.setattr(writer, "new_buffer", lambda size: buffers.append(size) or memoryview(bytearray(size)))
    for requests, part in ((MIN_REQUESTS, 8 * MIB), (64, 5 * MIB)):
        proxy.requests.clear()
        buffers.clear()
        with fs.transfer.slots.fixed(requests), fs.open(f"{folder}/object", "wb") as file:
            for piece in pieces:
                reused[: len(piece)] = piece
                file.write(memoryview(reused)[: len(piece)])
                assert file.tell() == sum(map(len, pieces[: pieces.index(piece) + 1]))
        assert sizes(parts(proxy)) == [*[part] * (len(DATA) // part), len(DATA) % part]
        assert {*buffers[1:]} == {part}  # one for each part, so none holds unused memory
        assert fs.transfer.buffers.free == file._writer._lent == []  # closed files hold none
        assert fs.cat_file(f"{folder}/object") == DATA


def test_one_request(fs: CSXFileSystem, folder: str) -> None:
    """A file of up to 8 MiB is one request, near and far."""
    fs.connect()
    for requests in (MIN_REQUESTS, 64):
        with (
            fs.transfer.slots.fixed(requests),
            recorded_requests() as operations,
            fs.open(f"{folder}/object", "wb") as file,
        ):
            file.write(memoryview(DATA)[: 3 * MIB])
            file.write(memoryview(DATA)[3 * MIB : 8 * MIB])
        assert [*operations] == ["PutObject"]
        assert fs.cat_file(f"{folder}/object") == DATA[: 8 * MIB]


def test_expected_size(server: LocalS3, folder: str, proxy: FaultProxy) -> None:
    """Parts are equal, and an expectation that was wrong loses nothing."""
    fs = through(proxy, server)
    for expected, size, sent in [
        (12 * MIB, 12 * MIB, [6 * MIB, 6 * MIB]),
        (12 * MIB, 13 * MIB, [6 * MIB, 6 * MIB, MIB]),
        (12 * MIB, 7, [7]),
        (12 * MIB, 0, [0]),
        (9 * MIB, 9 * MIB, []),
        (9 * MIB, 10 * MIB, [9 * MIB, MIB]),
    ]:
        proxy.requests.clear()
        data = DATA[:size]
        with fs.open(f"{folder}/object", "wb") as file:
            file.expect_size(expected)
            file.write(data)
        assert sizes(parts(proxy)) == sent
        assert fs.cat_file(f"{folder}/object") == data


@pytest.mark.parametrize(("copied", "sent"), [(0, [64, 6]), (MIB, [64, 7]), (17 * MIB, [16, 16, 16, 16, 16, 7])])
def test_parts_of_a_large_object(
    server: LocalS3, folder: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, copied: int, sent: list[int]
) -> None:
    """A store in the same network gets larger parts of memory that need not be copied; all have one size."""
    fs = through(proxy, server)
    monkeypatch.setattr(RequestSlots, "is_local", True)
    data = memoryview(bytearray(DATA * 5)[: 70 * MIB])
    with fs.open(f"{folder}/object", "wb") as file:
        file.expect_size(1024 * MIB, copied=copied > MIB)
        file.write(data[:copied])
        file.write_borrowed(data)
    assert sizes(parts(proxy)) == [size * MIB for size in sent]
    assert fs.cat_file(f"{folder}/object") == bytes(data[:copied]) + bytes(data)


def test_parts_of_copied_tensors(
    server: LocalS3, folder: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If some tensors of a state dict must be copied, all parts are small ones, which take less memory."""
    monkeypatch.setattr(part_sizes, "_LARGE_LOCAL", 64 * MIB)
    monkeypatch.setattr(RequestSlots, "is_local", True)
    fs = through(proxy, server)
    square = torch.ones(3000, 3000)
    state = {"a": square, "b": square.clone().t(), "c": square.clone()}
    with fs.open(f"{folder}/x.safetensors", "wb") as file:
        file_of(state).write(file, advance=lambda count: None)
    assert len(parts(proxy)) > 1
    assert max(sizes(parts(proxy))) <= 16 * MIB


def test_nothing_is_left_of_an_expectation(fs: CSXFileSystem, folder: str) -> None:
    """The upload that was created is aborted with the file, and none is created for one that takes no data."""
    with pytest.raises(KeyError), fs.open(f"{folder}/object", "wb") as file:
        file.expect_size(12 * MIB)
        file.expect_size(13 * MIB)  # another upload would stay
        raise KeyError
    with recorded_requests() as operations, pytest.raises(ValueError, match="closed"):
        file.expect_size(12 * MIB)
    fs.pipe_file(f"{folder}/old", b"old")
    with fs.open(f"{folder}/old", "rb") as reader, pytest.raises(ValueError, match="for reading"):
        reader.expect_size(12 * MIB)
    assert "CreateMultipartUpload" not in operations
    bucket, _, prefix = folder.partition("/")
    assert not fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix).get("Uploads")
    assert not fs.exists(f"{folder}/object")


@pytest.mark.parametrize(
    ("size", "more"), [(0, 7), (3, 0), (3, BLOCK), (BLOCK - 1, 1), (BLOCK, 0), (BLOCK, 7), (BLOCK + 1, 2 * BLOCK)]
)
def test_append(fs: CSXFileSystem, folder: str, size: int, more: int) -> None:
    """Mode a adds to an object of any size, and keeps its other attributes."""
    fs.pipe_file(f"{folder}/object", DATA[:size], ContentType="text/x-log", Metadata={"of": "a run"})
    with fs.open(f"{folder}/object", "ab", block_size=BLOCK) as file:
        assert file.tell() == size
        file.write(DATA[:more])
    assert fs.cat_file(f"{folder}/object") == DATA[:size] + DATA[:more]
    head = head_of(fs, f"{folder}/object")
    assert (head["ContentType"], head["Metadata"]) == ("text/x-log", {"of": "a run"})


def test_append_nothing(fs: CSXFileSystem, folder: str) -> None:
    """Mode a makes no upload for an object to which nothing is added, and none early for a small one."""
    for size in (3, 6 * MIB, PART - 1, PART):
        fs.pipe_file(f"{folder}/object", DATA[:size])
        with fs.open(f"{folder}/object", "ab") as file:
            pass
        assert file._writer.upload is None, size
        assert fs.cat_file(f"{folder}/object") == DATA[:size]


def test_append_to_nothing(fs: CSXFileSystem, folder: str) -> None:
    """Mode a makes an object where there is none."""
    with fs.open(f"{folder}/object", "ab") as file:
        file.write(b"new")
    assert fs.cat_file(f"{folder}/object") == b"new"


@pytest.mark.slow
def test_text_and_compression(fs: CSXFileSystem, folder: str) -> None:
    """Text and compressed bytes are the same when read again, larger ones than a part too."""
    lines = [f"{number} größer\n" for number in range(400_000)]
    with fs.open(f"{folder}/text", "w", encoding="utf-8", block_size=BLOCK) as file:
        file.writelines(lines)
    assert fs.cat_file(f"{folder}/text").decode() == "".join(lines)
    with fs.open(f"{folder}/text", "r", encoding="utf-8") as file:
        assert list(file) == lines
    with fs.open(f"{folder}/x.gz", "wb", compression="infer", block_size=BLOCK) as file:
        file.write(DATA[: BLOCK + 1])
    assert gzip.decompress(fs.cat_file(f"{folder}/x.gz")) == DATA[: BLOCK + 1]


@pytest.mark.parametrize("way", ["block_size", "default_block_size", "fixed_upload_size"])
@pytest.mark.parametrize("size", [6 * MIB, PART])
def test_part_size_is_the_block_size(server: LocalS3, folder: str, proxy: FaultProxy, way: str, size: int) -> None:
    """The parts have the chosen size, whatever the sizes of the writes; only the last is smaller."""
    options: dict[str, Any] = {"default_block_size": size} if way == "default_block_size" else {}
    fs = through(proxy, server, **options, fixed_upload_size=way == "fixed_upload_size")
    with fs.open(f"{folder}/object", "wb", **({} if options else {"block_size": size})) as file:
        file.write(DATA[: 2 * MIB + 1])
        file.write(DATA[2 * MIB + 1 :])
    full = len(DATA) // size
    assert sizes(parts(proxy)) == [size] * full + [len(DATA) - full * size]
    assert fs.cat_file(f"{folder}/object") == DATA


def test_parts_that_do_not_grow(server: LocalS3, folder: str, proxy: FaultProxy) -> None:
    """Where no part may be larger than the first, 10,000 parts of 8 MiB hold more than the smallest ones."""
    fs = through(proxy, server, fixed_upload_size=True)
    with fs.open(f"{folder}/object", "wb") as file:
        file.write(DATA)
    assert sizes(parts(proxy)) == [PART, len(DATA) - PART]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 3 * MIB, 65 * MIB])
def test_memory_is_the_callers_again(fs: CSXFileSystem, folder: str, size: int) -> None:
    """What is written may be overwritten at once: it is copied, or if it is large sent before ``write`` returns."""
    buffer = bytearray(os.urandom(size))
    digest = hashlib.sha256(buffer)
    with fs.open(f"{folder}/object", "wb", block_size=BLOCK) as file:
        file.write(buffer)
        buffer[:] = bytes(size)
        file.write(b"end")
    digest.update(b"end")
    assert hashlib.sha256(fs.cat_file(f"{folder}/object")).digest() == digest.digest()


@pytest.mark.slow
def test_a_far_store_gets_large_writes_from_buffers(server: LocalS3, folder: str, proxy: FaultProxy) -> None:
    """A large write to a far store is copied and returns before it is sent, so that the next one follows at once."""
    fs = through(proxy, server)
    fs.connect()
    released, passed = threading.Event(), list[bool]()
    proxy.faults = [Fault("PUT", query="partNumber", times=99, before=lambda: passed.append(released.wait(60)))]
    data = bytearray(os.urandom(65 * MIB))
    expected = bytes(data)
    with fs.transfer.slots.fixed(32), fs.open(f"{folder}/object", "wb") as file:
        file.write(data)
        data[:] = bytes(len(data))
        released.set()
    assert passed == [True] * 13
    assert fs.cat_file(f"{folder}/object") == expected


def peak_of_writing(file: Any, write: Any) -> int:
    """The most bytes that Python allocated beyond what there was, while a file was written and closed."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        write(file)
        file.close()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_borrowed_memory_is_not_copied(fs: CSXFileSystem, folder: str) -> None:
    """``write_borrowed`` sends memory from where it is."""
    buffer = bytearray(os.urandom(40 * MIB))
    fs.pipe_file(f"{folder}/object", b"")  # what the first request of a client allocates
    peak = peak_of_writing(fs.open(f"{folder}/object", "wb"), lambda file: file.write_borrowed(buffer))
    assert peak < 3 * MIB
    assert fs.cat_file(f"{folder}/object") == buffer


def test_checksums_of_summed_memory(fs: CSXFileSystem, folder: str) -> None:
    """``write_summed`` returns the CRC-32, and the parts are sent with the right checksums, wherever they are cut."""
    data = os.urandom(24 * MIB)
    sizes = (1000, 4 * MIB, 7, 13 * MIB + 5, 0, 65_535, 65_536, 200_000, 4 * MIB)
    expected, position = bytearray(), 0
    with fs.open(f"{folder}/object", "wb", block_size=BLOCK) as file:
        for number, size in enumerate(sizes):
            piece = memoryview(data)[position : position + size]
            if number % 2:
                assert file.write_summed(piece) == zlib.crc32(piece)
            else:
                file.write(piece)
            expected += piece
            position += size
    assert fs.cat_file(f"{folder}/object") == expected
    assert head_of(fs, f"{folder}/object")["ChecksumCRC64NVME"] == crc64nvme(bytes(expected))


def test_memory_of_many_small_writes(fs: CSXFileSystem, folder: str) -> None:
    """However much is written in small pieces, few parts of it are in memory."""
    piece = bytearray(50_000)

    def write(file: Any) -> None:
        for _ in range(2500):
            file.write(piece)

    fs.pipe_file(f"{folder}/object", b"")
    assert peak_of_writing(fs.open(f"{folder}/object", "wb"), write) < 80 * MIB
    assert fs.size(f"{folder}/object") == 2500 * len(piece)


def test_files_share_the_memory_of_copies(server: LocalS3, folder: str, proxy: FaultProxy) -> None:
    """The bound of copies in flight is one for all files; each file can have one part in flight all the same."""
    fs = through(proxy, server)
    fs.connect()
    released = threading.Event()
    proxy.faults = [Fault("PUT", query="partNumber", times=99, before=lambda: released.wait(60))]
    with (
        fs.transfer.slots.fixed(MIN_REQUESTS),
        fs.open(f"{folder}/first", "wb", block_size=BLOCK) as first,
        fs.open(f"{folder}/second", "wb", block_size=BLOCK) as second,
    ):
        first.write(bytearray(8 * BLOCK))
        second.write(bytes(BLOCK))
        assert fs.transfer.room == BLOCK  # the last part of the first waits for more data
        first.write(bytes(MIB))
        assert fs.transfer.room == 0
        assert second._writer._has_room(BLOCK)
        second.write(bytes(MIB))
        assert not second._writer._has_room(BLOCK)
        released.set()
    assert fs.transfer.room == 8 * BLOCK
    assert fs.cat(f"{folder}/", recursive=True) == {
        f"{folder}/first": bytes(8 * BLOCK + MIB),
        f"{folder}/second": bytes(BLOCK + MIB),
    }
    with pytest.raises(ZeroDivisionError), fs.open(f"{folder}/third", "wb", block_size=BLOCK) as file:
        file.write(bytes(3 * BLOCK))
        raise ZeroDivisionError
    assert fs.transfer.room == 8 * BLOCK


def test_idle_files_share_their_buffers(fs: CSXFileSystem, folder: str) -> None:
    """The free buffers of all open files together have the bound of all copies; closed files have none."""
    fs.connect()
    free = fs.transfer.buffers
    with fs.transfer.slots.fixed(MIN_REQUESTS):
        files = [fs.open(f"{folder}/{number}", "wb", block_size=BLOCK * (1 + number % 2)) for number in range(4)]
        for file in files:
            file.write(bytearray(8 * BLOCK + MIB))
            file._writer._wait_until(lambda file=file: not file._writer._in_flight)
            assert 0 < sum(map(len, free.free)) <= fs.transfer.buffered_bytes
            assert len({*map(len, free.free)}) == 1
        with fs.open(f"{folder}/small", "wb") as small:  # its only buffer is not one of the free ones
            small.write(bytearray(MIB))
        for file in files[:3]:
            file.close()
        assert free.free
        files[3].discard()
        assert not free.free
    fs.rm_file(f"{folder}/small")
    assert sorted(fs.cat(f"{folder}/", recursive=True).values()) == [bytes(8 * BLOCK + MIB)] * 3


def test_threads_share_a_file(fs: CSXFileSystem, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What several threads write to one file is in it, each write as a whole."""
    records = [[b"%d-%06d".ljust(3000) % (thread, number) for number in range(800)] for thread in range(8)]
    interval = sys.getswitchinterval()
    monkeypatch.setattr(writer, "_JOINED", 5000)
    sys.setswitchinterval(1e-6)
    try:
        with fs.open(f"{folder}/object", "wb") as file, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda own: [file.write(each) for each in own], records))
    finally:
        sys.setswitchinterval(interval)
    data, size = fs.cat_file(f"{folder}/object"), len(records[0][0])
    assert sorted(data[start : start + size] for start in range(0, len(data), size)) == sorted(
        itertools.chain(*records)
    )


def test_discarded_by_another_thread(fs: CSXFileSystem, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write ends if another thread discards the file before the upload is begun; it waited for ever for its parts."""
    fs.connect()
    file = fs.open(f"{folder}/object", "wb", block_size=BLOCK)
    schedule = Work.schedule

    def discard_first(work: Work) -> None:
        if work is file._writer._creating:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(file.discard).result()
        schedule(work)

    with (
        fs.transfer.slots.fixed(MIN_REQUESTS),
        monkeypatch.context() as patched,
        pytest.raises((CancelledError, ValueError)),
    ):
        patched.setattr(Work, "schedule", discard_first)
        file.write(bytearray(11 * BLOCK))
    assert not fs.transfer.buffered
    assert not fs.exists(f"{folder}/object")


def test_parts_are_in_flight_side_by_side(server: LocalS3, folder: str, proxy: FaultProxy) -> None:
    """Over a line that takes its time, parts are sent at the same time, and the writer need not wait for each."""
    fs = through(proxy, server)
    together = threading.Barrier(6, timeout=60)
    proxy.faults = [Fault("PUT", query="partNumber", times=6, before=together.wait)]
    with fs.open(f"{folder}/object", "wb", block_size=BLOCK) as file:
        for _ in range(2):
            file.write(DATA)
    assert len(parts(proxy)) == 7
    assert not together.broken
    assert fs.cat_file(f"{folder}/object") == DATA + DATA


@pytest.mark.parametrize("end", ["close", "discard", "fail"])
def test_thread_that_waits_for_the_next_part(
    server: LocalS3, folder: str, proxy: FaultProxy, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a thread waits for another part, it takes that, and the end of the file at once."""
    monkeypatch.setattr(request_queue, "_LINGER_SECONDS", 120.0)
    fs, began = through(proxy, server), time.monotonic()
    data = os.urandom(8 * BLOCK)
    file = fs.open(f"{folder}/object", "wb", block_size=BLOCK)
    for start in range(0, len(data), BLOCK):
        file.write(data[start : start + BLOCK])
        file._writer._wait_until(lambda: not file._writer._in_flight)  # so that its thread is idle before the next
    assert fs.transfer.slots._taken == 1
    if end == "close":
        file.close()
        assert fs.cat_file(f"{folder}/object") == data
    else:
        if end == "fail":
            proxy.faults = [Fault("PUT", query="partNumber=9", times=99, answer=error_answer(403, "AccessDenied"))]
            file.write(bytes(BLOCK + 1))
            with pytest.raises(AccessDeniedError):
                file.close()
        file.discard()
        assert not fs.exists(f"{folder}/object")
    assert not uploads_below(fs, folder)
    assert time.monotonic() - began < 100


@pytest.mark.parametrize("when", ["write", "close"])
def test_failed_part(server: LocalS3, folder: str, proxy: FaultProxy, when: str) -> None:
    """A part that fails in the background is reported by the next write or by the close, and the old object stays."""
    fs = through(proxy, server)
    fs.pipe_file(f"{folder}/object", b"old")
    failed = threading.Event()
    refused = error_answer(403, "AccessDenied")
    proxy.faults = [Fault("PUT", query="partNumber=1&", times=99, answer=refused, after=failed.set)]
    file = fs.open(f"{folder}/object", "wb", block_size=BLOCK)
    file.write(DATA[: BLOCK + 1])
    with pytest.raises(AccessDeniedError):
        while when == "write":
            file.write(bytes(BLOCK))
        assert failed.wait(60)
        file.close()
    assert file.closed
    assert len(parts(proxy)) < 10
    assert uploads_below(fs, folder) == []
    assert fs.cat_file(f"{folder}/object") == b"old"


def test_failed_creation(server: LocalS3, folder: str, proxy: FaultProxy) -> None:
    """The error of the creation is raised once for all parts, and no part adds to its traceback."""
    fs = through(proxy, server)
    held = threading.Event()
    refused = error_answer(403, "AccessDenied")
    proxy.faults = [Fault("POST", query="uploads", times=99, before=lambda: held.wait(60), answer=refused)]
    with pytest.raises(AccessDeniedError) as raised, fs.open(f"{folder}/object", "wb") as file:
        file.write(memoryview(DATA + DATA))
        held.set()
    assert "_send" not in [entry.name for entry in raised.traceback]
    assert parts(proxy) == []
    assert not fs.exists(f"{folder}/object")


@pytest.mark.parametrize("first", [5 * MIB, PART, 50 * MIB, 1024 * MIB])
def test_part_sizes_reach_the_largest_object(first: int) -> None:
    """The parts of an object of unknown size grow, so that 10,000 of them hold 5 TiB and none is above 5 GiB."""
    grown = [part_size(number, first) for number in range(1, PARTS + 1)]
    assert sum(grown) >= 5 * 2**40
    assert max(grown) <= 5 * 2**30
    assert grown == sorted(grown)
    assert grown[:900] == [first] * 900  # not before it has to be


@pytest.mark.parametrize("size", [1, PART, 2**30, PARTS * PART, PARTS * PART + 1, 5 * 2**40])
def test_part_size_for_a_known_size(size: int) -> None:
    """The parts of an object of known size are as small as 10,000 of them allow."""
    chosen = part_size_for(size)
    assert -(-size // chosen) <= PARTS
    assert chosen == PART or -(-size // (chosen - MIB)) > PARTS


# -- whole objects from memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", FEW_SIZES)
def test_pipe_file(fs: CSXFileSystem, folder: str, size: int) -> None:
    """Bytes of any size become the object, a small one by one request."""
    with recorded_requests() as operations:
        fs.pipe_file(f"{folder}/object", DATA[:size], chunksize=BLOCK)
    assert operations.count("PutObject") == (size <= BLOCK)
    assert fs.cat_file(f"{folder}/object") == DATA[:size]
    assert head_of(fs, f"{folder}/object")["ChecksumCRC64NVME"] == crc64nvme(DATA[:size])


@pytest.mark.parametrize("size", [3, 2 * BLOCK])
def test_pipe_file_create(fs: CSXFileSystem, folder: str, size: int) -> None:
    """Mode create makes an object and replaces none; the upload in vain is aborted."""
    fs.pipe_file(f"{folder}/object", DATA[:size], mode="create", chunksize=BLOCK)
    with pytest.raises(ObjectExistsError):
        fs.pipe_file(f"{folder}/object", bytes(size), mode="create", chunksize=BLOCK)
    assert fs.cat_file(f"{folder}/object") == DATA[:size]
    assert uploads_below(fs, folder) == []


def test_pipe_of_text_and_of_many(fs: CSXFileSystem, folder: str) -> None:
    """Text is written as UTF-8, and many objects are written by one call."""
    fs.pipe({f"{folder}/{number}": f"ä{number}".encode() for number in range(30)})
    fs.pipe_file(f"{folder}/text", "ä€")  # type: ignore[arg-type]
    assert fs.cat_file(f"{folder}/29") == "ä29".encode()
    assert fs.cat_file(f"{folder}/text") == "ä€".encode()


# -- local files and copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", FEW_SIZES)
def test_put_file(fs: CSXFileSystem, folder: str, tmp_path: Path, size: int) -> None:
    """A local file becomes the object, of the content type that its name says, and the callback hears of all bytes."""
    (tmp_path / "x.json").write_bytes(DATA[:size])
    callback = Callback()
    fs.put_file(str(tmp_path / "x.json"), f"{folder}/object", callback=callback, chunksize=BLOCK)
    assert (callback.size, callback.value) == (size, size)
    assert fs.cat_file(f"{folder}/object") == DATA[:size]
    assert fs.info(f"{folder}/object")["ContentType"] == "application/json"


def test_put_what_has_no_size(fs: CSXFileSystem, folder: str, tmp_path: Path) -> None:
    """What a pipe brings, and what the kernel makes up, become the object."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(DATA[:100_000],))
    writer.start()
    fs.put_file(str(tmp_path / "pipe"), f"{folder}/object")
    writer.join()
    assert fs.cat_file(f"{folder}/object") == DATA[:100_000]
    fs.put_file("/proc/self/stat", f"{folder}/object")
    assert fs.cat_file(f"{folder}/object").startswith(str(os.getpid()).encode())


def test_put_of_a_folder_makes_nothing(fs: CSXFileSystem, folder: str, tmp_path: Path) -> None:
    """A local folder has no object."""
    fs.put_file(str(tmp_path), f"{folder}/folder")
    assert fs.find(folder) == []


def test_put_of_files_with_names_of_objects(
    fs: CSXFileSystem, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A local file is not taken for an object whose path is equal to its relative path."""
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir(parents=True)
    for name in ("1", "2"):
        Path(folder, name).write_text(name)
    fs.put([f"{folder}/1", f"{folder}/2"], [f"{folder}/2", f"{folder}/3"])
    assert [fs.cat_file(f"{folder}/{name}") for name in ("2", "3")] == [b"1", b"2"]


@pytest.mark.parametrize("whole", [True, False])
def test_copy(fs: CSXFileSystem, folder: str, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    """The server copies an object, a large one in parts, and what belongs to it stays with it."""
    if not whole:
        monkeypatch.setattr(server_copy, "_COPIED_WHOLE", BLOCK)
        monkeypatch.setattr(server_copy, "part_size_for", lambda size: BLOCK)
    report = {"ContentType": "text/x-log", "CacheControl": "no-store", "Metadata": {"of": "a run"}}
    fs.pipe_file(f"{folder}/object", DATA, chunksize=BLOCK, **report)
    with recorded_requests() as operations:
        fs.cp_file(f"{folder}/object", f"{folder}/copy")
    assert operations.count("UploadPartCopy") == (0 if whole else 4)
    assert fs.cat_file(f"{folder}/copy") == DATA
    head = head_of(fs, f"{folder}/copy")
    assert {name: head[name] for name in report} == report


def test_copy_of_what_is_replaced_meanwhile(
    server: LocalS3, fs: CSXFileSystem, folder: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy in parts is of one state of its source, or it is an error that leaves nothing behind."""
    monkeypatch.setattr(server_copy, "_COPIED_WHOLE", BLOCK)
    monkeypatch.setattr(server_copy, "part_size_for", lambda size: BLOCK)
    fs.pipe_file(f"{folder}/object", DATA)
    proxy.faults = [Fault("PUT", before=lambda: fs.pipe_file(f"{folder}/object", DATA[::-1]))]
    with pytest.raises(ObjectChangedError, match="changed meanwhile"):
        through(proxy, server, max_concurrency=1).cp_file(f"{folder}/object", f"{folder}/copy")
    assert not fs.exists(f"{folder}/copy")
    assert uploads_below(fs, folder) == []


# -- what goes over the wire ------------------------------------------------------------------------------------------


def write(fs: CSXFileSystem, path: str, way: str, size: int, folder: Path, **options: Any) -> None:
    """Make the first bytes of the data an object, in one of three ways."""
    if way == "open":
        with fs.open(path, "wb", block_size=BLOCK, **options) as file:
            file.write(DATA[:size])
    elif way == "pipe_file":
        fs.pipe_file(path, DATA[:size], chunksize=BLOCK, **options)
    else:
        (folder / "local").write_bytes(DATA[:size])
        fs.put_file(str(folder / "local"), path, chunksize=BLOCK, **options)


@pytest.mark.parametrize("way", ["open", "pipe_file", "put_file"])
@pytest.mark.parametrize("size", [3, 2 * BLOCK + 1])
def test_checksums_on_the_wire(
    server: LocalS3, folder: str, proxy: FaultProxy, tmp_path: Path, way: str, size: int
) -> None:
    """Each body has its CRC-64/NVME in a header, is not hashed besides, and is sent without a question; no trailers."""
    fs = through(proxy, server)
    write(fs, f"{folder}/object", way, size, tmp_path)
    bodies = parts(proxy) or proxy.made("PUT")
    pieces = [DATA[start : min(start + BLOCK, size)] for start in range(0, size, BLOCK)]
    assert [one.headers["x-amz-checksum-crc64nvme"] for one in bodies] == [crc64nvme(piece) for piece in pieces]
    for one in bodies:
        assert one.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
        assert not {"expect", "x-amz-trailer", "transfer-encoding", "content-encoding"} & set(one.headers)
    for one in proxy.made("POST"):
        assert one.headers["x-amz-checksum-type"] == "FULL_OBJECT"
    assert head_of(fs, f"{folder}/object")["ChecksumCRC64NVME"] == crc64nvme(DATA[:size])


@pytest.mark.parametrize("size", [3, BLOCK + 1])
def test_signed_payloads(server: LocalS3, folder: str, proxy: FaultProxy, tmp_path: Path, size: int) -> None:
    """Whoever wants the bodies in the signature gets them there."""
    fs = through(proxy, server, config_kwargs={"s3": {"payload_signing_enabled": True}})
    write(fs, f"{folder}/object", "open", size, tmp_path)
    body = (parts(proxy) or proxy.made("PUT"))[0]
    assert body.headers["x-amz-content-sha256"] == hashlib.sha256(DATA[: min(size, BLOCK)]).hexdigest()
    assert fs.cat_file(f"{folder}/object") == DATA[:size]


def has_checksum(request: Request) -> bool:
    """Whether a request has a checksum, or reports one."""
    names = [name for name in request.headers if "checksum" in name or name == "x-amz-trailer"]
    return any(name != "x-amz-checksum-mode" for name in names)


@pytest.mark.parametrize("refusal", [(501, "NotImplemented"), (400, "InvalidRequest")])
@pytest.mark.parametrize(("way", "size"), [("open", BLOCK + 1), ("pipe_file", 3), ("put_file", BLOCK + 1)])
def test_server_that_knows_no_checksums(
    server: LocalS3, folder: str, proxy: FaultProxy, tmp_path: Path, refusal: tuple[int, str], way: str, size: int
) -> None:
    """It gets no checksums, and is tried with them only once."""
    fs = through(proxy, server)
    proxy.faults = [Fault(when=has_checksum, times=1000, answer=error_answer(*refusal))]
    write(fs, f"{folder}/object", way, size, tmp_path)
    assert fs.cat_file(f"{folder}/object") == DATA[:size]
    assert sum(map(has_checksum, proxy.requests)) == 1
    write(fs, f"{folder}/object", way, size, tmp_path)
    assert sum(map(has_checksum, proxy.requests)) == 1


@pytest.mark.parametrize("way", ["open", "pipe_file"])
@pytest.mark.parametrize("size", [3, BLOCK + 1])
def test_checksum_of_the_users_choice(server: LocalS3, folder: str, proxy: FaultProxy, way: str, size: int) -> None:
    """An algorithm that the user names is used in place of ours."""
    fs = through(proxy, server, s3_additional_kwargs={"ChecksumAlgorithm": "SHA256"})
    write(fs, f"{folder}/object", way, size, Path())
    body = (parts(proxy) or proxy.made("PUT"))[0]
    digest = hashlib.sha256(DATA[: min(size, BLOCK)]).digest()
    assert body.headers["x-amz-checksum-sha256"] == base64.b64encode(digest).decode()
    assert not any("crc64nvme" in one.headers.get("x-amz-checksum-algorithm", "").lower() for one in proxy.requests)
    assert fs.cat_file(f"{folder}/object") == DATA[:size]
    assert "ChecksumSHA256" in head_of(fs, f"{folder}/object")


@pytest.mark.parametrize("way", ["open", "pipe_file", "put_file"])
@pytest.mark.parametrize("size", [3, BLOCK + 1])
def test_bit_flipped_on_the_way_up(
    server: LocalS3, folder: str, proxy: FaultProxy, tmp_path: Path, way: str, size: int
) -> None:
    """The server notices a damaged body, and it is sent again; if that never helps, the old object stays."""
    fs = through(proxy, server, config_kwargs={"retries": {"max_attempts": 2}})
    fs.pipe_file(f"{folder}/object", b"old")
    proxy.faults = [Fault("PUT", flip_up=size % BLOCK - 1, times=1000)]
    with pytest.raises(OSError, match=r"did not match"):
        write(fs, f"{folder}/object", way, size, tmp_path)
    assert fs.cat_file(f"{folder}/object") == b"old"
    assert uploads_below(fs, folder) == []
    proxy.faults[0].times = 2
    write(fs, f"{folder}/object", way, size, tmp_path)
    assert proxy.faults[0].times == 0
    assert fs.cat_file(f"{folder}/object") == DATA[:size]


@pytest.mark.parametrize("way", ["open", "pipe_file", "put_file"])
@pytest.mark.parametrize("size", [3, BLOCK + 1])
def test_options_of_s3_reach_the_requests(
    server: LocalS3, folder: str, proxy: FaultProxy, tmp_path: Path, way: str, size: int
) -> None:
    """Additional parameters of the call or the filesystem are sent with the requests that accept them."""
    fs = through(proxy, server, s3_additional_kwargs={"StorageClass": "STANDARD_IA"})
    options = {"ACL": "bucket-owner-full-control"} if way != "open" else {"acl": "bucket-owner-full-control"}
    write(fs, f"{folder}/object", way, size, tmp_path, Metadata={"of": "a run"}, Tagging="a=b", **options)
    first = proxy.made("PUT" if size < BLOCK else "POST")[0]
    expected = {
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-acl": "bucket-owner-full-control",
        "x-amz-tagging": "a=b",
        "x-amz-meta-of": "a run",
    }
    assert expected.items() <= first.headers.items()
    assert fs.info(f"{folder}/object")["size"] == size


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 2 * BLOCK + 1])
def test_customer_keys(server: LocalS3, folder: str, tmp_path: Path, size: int) -> None:
    """Objects encrypted by a key of the user's own are written and read in every way, and not without the key."""
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32).hex()[:32]}
    fs = fsspec.filesystem("s3", **server.storage_options(), s3_additional_kwargs=key, skip_instance_cache=True)
    for way in ("open", "pipe_file", "put_file"):
        write(fs, f"{folder}/object", way, size, tmp_path)
        assert fs.cat_file(f"{folder}/object") == DATA[:size]
        assert fs.cat_file(f"{folder}/object", start=1, end=size) == DATA[1:size]
        with fs.open(f"{folder}/object", "rb") as file:
            assert file.read() == DATA[:size]
        fs.get_file(f"{folder}/object", str(tmp_path / "back"))
        assert (tmp_path / "back").read_bytes() == DATA[:size]
    plain = fsspec.filesystem("s3", **server.storage_options(), use_listings_cache=False)
    with pytest.raises(OSError, match=r"(?i)encrypt|key|bad request"):
        plain.cat_file(f"{folder}/object")


def test_memory_of_copies_is_of_one_part(fs: CSXFileSystem, folder: str) -> None:
    """Memory of a part that has been sent is used again as a whole: the next part has none of what is left of it."""
    pieces = [
        bytearray(os.urandom(3 * MIB // 2)),  # copied into a larger memory
        os.urandom(BLOCK - 3 * MIB // 2),  # and the part is full
        bytearray(os.urandom(MIB)),
        bytearray(os.urandom(4 * MIB)),
        bytearray(os.urandom(MIB)),
    ]
    with fs.open(f"{folder}/object", "wb", block_size=BLOCK) as file:
        for number, piece in enumerate(pieces):
            file.write(piece)
            while number == 2 and file._writer._in_flight:
                time.sleep(0.01)
    assert fs.cat_file(f"{folder}/object") == b"".join(pieces)


@pytest.mark.parametrize(("way", "size"), [("open", BLOCK + 1), ("open", 3), ("pipe_file", 3), ("put_file", 3)])
def test_page_in_place_of_an_answer(
    server: LocalS3, folder: str, proxy: FaultProxy, tmp_path: Path, way: str, size: int
) -> None:
    """A write that is answered by the page of a proxy, with the status 200, has failed: nothing was stored."""
    fs = through(proxy, server)
    page = (200, {"Content-Type": "text/html"}, b"<html><body>Please log in.</body></html>")
    proxy.faults = [Fault("PUT", times=1000, answer=page)]
    with pytest.raises(OSError, match="ETag"):
        write(fs, f"{folder}/object", way, size, tmp_path)
    with pytest.raises(OSError, match="ETag"):
        fs.pipe({f"{folder}/{number}": b"data" for number in range(5)})
    assert not fs.exists(f"{folder}/object")
