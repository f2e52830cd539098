"""Many objects read directly into memory: with the server's bytes, whatever faults occur."""

from __future__ import annotations

import gc
import hashlib
import logging
import mimetypes
import os
import time
import weakref
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from conftest import recorded_requests
from proxy import Fault, FaultProxy, error_answer, through
from s3fs.utils import FileExpired

from fsspec_csx.errors import ChecksumError, ObjectNotFoundError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import request_template
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST
from fsspec_csx.testing import LocalS3

NAMES = [f"run/{number} é?#%+&=;:@,$*'()!~.w" for number in range(40)]


def data(name: str) -> bytes:
    """What an object of a name holds."""
    return hashlib.sha256(name.encode()).digest() * 30


@pytest.fixture
def folder(fs: CSXFileSystem, bucket: str) -> str:
    """The bucket with the objects."""
    fs.pipe({f"{bucket}/{name}": data(name) for name in NAMES})
    return bucket


def read(fs: CSXFileSystem, folder: str, size: int = 960) -> list[bytes]:
    """All the objects, read into memory."""
    made = [bytearray(size) for _ in NAMES]
    wanted = [(f"{folder}/{name}", 0, memoryview(each), size) for name, each in zip(NAMES, made, strict=True)]
    advanced: list[int] = []
    sizes = fs.readinto_objects(wanted, advanced.append)
    assert sizes == [960] * len(NAMES)
    assert sum(advanced) == size * len(NAMES)
    return [bytes(each) for each in made]


def test_no_bytes_of_an_object(fs: CSXFileSystem, bucket: str) -> None:
    """A memory of no bytes is filled from anywhere in an object."""
    fs.pipe_file(f"{bucket}/object", b"abc")
    assert fs.readinto_objects([(f"{bucket}/object", at, memoryview(b""), 3) for at in (0, 1, 3)]) == [3, 3, 3]


def test_requests_that_have_ended_hold_no_memory(
    fs: CSXFileSystem, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that was filled may be resized, though a thread may still refer to its request."""
    kept = list[Any]()
    init = RangeRequest.__init__
    monkeypatch.setattr(RangeRequest, "__init__", lambda self, *a, **k: init(self, *a, **k) or kept.append(self))
    for start, count in ((0, 1), (0, 5), (9, 5)):
        memories = [bytearray(960 - start) for _ in range(count)]
        found = zip(NAMES, memories, strict=False)
        fs.readinto_objects([(f"{folder}/{name}", start, memoryview(memory), 960) for name, memory in found])
        for name, memory in zip(NAMES, memories, strict=False):
            memory.extend(b"more")
            assert memory == data(name)[start:] + b"more"
    assert len(kept) >= 11


def test_memory_is_freed_without_a_garbage_collection(fs: CSXFileSystem, folder: str) -> None:
    """What many objects were read into is freed when the last thread has ended its request."""
    memories = [np.zeros(960, np.uint8) for _ in NAMES]
    freed = [weakref.ref(memory) for memory in memories]
    gc.collect()
    gc.disable()
    try:
        wanted = [
            (f"{folder}/{name}", 0, memoryview(memory), 960) for name, memory in zip(NAMES, memories, strict=True)
        ]
        fs.readinto_objects(wanted)
        del memories, wanted
        deadline = time.monotonic() + 60
        while any(each() is not None for each in freed) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not any(each() is not None for each in freed)
    finally:
        gc.enable()


def test_small_objects(fs: CSXFileSystem, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    """Small objects of any names come whole by a request each, and botocore makes one of them."""
    with recorded_requests() as operations, caplog.at_level(logging.DEBUG, "botocore.endpoint"):
        assert read(fs, folder) == [data(name) for name in NAMES]
    assert operations == ["GetObject"] * len(NAMES)
    assert sum(each.getMessage().startswith("Making request") for each in caplog.records) == 1


def test_other_sizes(fs: CSXFileSystem, folder: str) -> None:
    """The sizes that objects have are reported, where others were expected too."""
    for size in (1, 959, 961, 5000):
        read(fs, folder, size)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET", skip=20, times=3, answer=error_answer(503, "SlowDown")),
        Fault("GET", skip=20, times=2, answer=error_answer(500, "InternalError")),
        Fault("GET", skip=20, times=2, cut_down=100),
        Fault("GET", skip=20, times=2, cut_up=0),
        Fault("GET", skip=20, times=2, flip_down=100),
        Fault("GET", skip=20, times=2, shorten=10),
        Fault("GET", skip=20, times=1, answer=error_answer(403, "ExpiredToken")),
    ],
    ids=["busy", "failing", "cut", "refused", "flipped", "shortened", "expired"],
)  # fmt: skip
def test_faults_on_the_way(server: LocalS3, proxy: FaultProxy, folder: str, fault: Fault) -> None:
    """Missing bytes are requested again."""
    far = through(proxy, server)
    proxy.faults.append(fault)
    assert read(far, folder) == [data(name) for name in NAMES]
    assert fault.times == 0


@pytest.mark.parametrize("method", ["cat", "get", "cat_ranges"])
def test_calls_for_many_objects(
    server: LocalS3,
    proxy: FaultProxy,
    folder: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    """A call for many objects makes a request for each, the first by botocore, and survives faults on the way."""
    far = through(proxy, server)
    large = os.urandom(2 * MIN_REQUEST)
    far.pipe_file(f"{folder}/large", large)
    names, contents = [*NAMES, "large"], [*map(data, NAMES), large]
    paths = [f"{folder}/{name}" for name in names]

    def read() -> list[bytes]:
        if method == "cat":
            found = far.cat(paths)
            return [found[path] for path in paths]
        if method == "cat_ranges":
            return list(far.cat_ranges(paths, 0, None, on_error="raise"))
        targets = [tmp_path / str(number) for number in range(len(paths))]
        far.get(paths, list(map(str, targets)))
        return [each.read_bytes() for each in targets]

    with recorded_requests() as operations, caplog.at_level(logging.DEBUG, "botocore.endpoint"):
        assert read() == contents
    assert len(paths) <= operations.count("GetObject") <= len(paths) + 2
    made = [each.getMessage() for each in caplog.records if "Making request" in each.getMessage()]
    assert sum("name=GetObject" in each for each in made) <= 3
    for fault in (
        Fault("GET", skip=20, times=2, answer=error_answer(503, "SlowDown")),
        Fault("GET", skip=20, times=2, cut_down=100),
        Fault("GET", skip=20, times=2, flip_down=100),
        Fault("GET", skip=5, answer=error_answer(403, "ExpiredToken"), when=lambda made: "/0%20" not in made.path),
    ):
        if method == "cat_ranges" and fault.flip_down is not None:
            continue  # S3 has no checksums of ranges
        proxy.faults.append(fault)
        assert read() == contents
        assert fault.times == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["put", "pipe"])
def test_calls_that_make_many_objects(
    server: LocalS3,
    proxy: FaultProxy,
    bucket: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    """A call that makes many objects makes a request for each, the first by botocore, and survives faults."""
    far = through(proxy, server)
    files = {
        tmp_path / f"{number} é?+&.{('txt', 'json', 'none')[number % 3]}": data(str(number)) for number in range(40)
    }
    for path, content in files.items():
        path.write_bytes(content)

    def write(name: str) -> None:
        targets = [f"{bucket}/{name}/{path.name}" for path in files]
        if method == "put":
            far.put(list(map(str, files)), targets, Metadata={"a": "b"})
        else:
            far.pipe(dict(zip(targets, files.values(), strict=True)), Metadata={"a": "b"})
        assert [far.cat_file(each) for each in targets] == list(files.values())

    with recorded_requests() as operations, caplog.at_level(logging.DEBUG, "botocore.endpoint"):
        write("once")
    assert operations.count("PutObject") == len(files)
    made = [each.getMessage() for each in caplog.records if "Making request" in each.getMessage()]
    assert sum("name=PutObject" in each for each in made) == 1
    for path in files:
        found = far.call_s3("head_object", Bucket=bucket, Key=f"once/{path.name}", ChecksumMode="ENABLED")
        assert found["Metadata"] == {"a": "b"}
        if method == "put" and (kind := mimetypes.guess_type(path.name)[0]):
            assert found["ContentType"] == kind
    for fault in (
        Fault("PUT", skip=20, times=2, answer=error_answer(503, "SlowDown")),
        Fault("PUT", skip=20, times=2, cut_up=100),
        Fault("PUT", skip=20, times=2, cut_down=0),
        Fault("PUT", skip=5, answer=error_answer(403, "ExpiredToken"), when=lambda made: "/0%20" not in made.path),
    ):
        proxy.faults.append(fault)
        write("again")
        assert fault.times == 0


def test_missing_among_many(fs: CSXFileSystem, folder: str, tmp_path: Path) -> None:
    """A call for many objects says which one is not there."""
    paths = [f"{folder}/{name}" for name in [*NAMES[:9], "missing"]]
    assert list(fs.cat(paths, on_error="omit")) == paths[:-1]
    with pytest.raises(ObjectNotFoundError, match="missing"):
        fs.cat(paths)
    with pytest.raises(ObjectNotFoundError, match="missing"):
        fs.get(paths, f"{tmp_path}/")
    assert not [each for each in tmp_path.rglob("*") if each.name.endswith(".tmp") or each.name == "missing"]


def test_replaced_while_read_as_a_file(fs: CSXFileSystem, folder: str) -> None:
    """A file whose requests are signed here notices too that its object was replaced."""
    path = f"{folder}/replaced"
    fs.pipe_file(path, bytes(2**20))
    with fs.open(path, block_size=2**16) as file:
        for position in (0, 2**19, 2**18):
            file.seek(position)
            assert file.read(10) == bytes(10)
        fs.pipe_file(path, b"1" * 2**20)
        file.seek(700_000)
        with pytest.raises(FileExpired):
            file.read(10)


def test_missing_object(fs: CSXFileSystem, folder: str) -> None:
    """An object that is not there is named."""
    fs.rm_file(f"{folder}/{NAMES[30]}")
    with pytest.raises(ObjectNotFoundError, match="run/30"):
        read(fs, folder)


def test_damaged_again_and_again(server: LocalS3, proxy: FaultProxy, folder: str) -> None:
    """What never comes as the server holds it is an error."""
    far = through(proxy, server)
    proxy.faults.append(Fault("GET", when=lambda request: "/25%20" in request.path, times=99, flip_down=7))
    with pytest.raises(ChecksumError, match="run/25"):
        read(far, folder)


def test_requests_that_only_botocore_makes(
    server: LocalS3, fs: CSXFileSystem, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where requests are not signed as usual, all are made as usual."""

    def refuse(*args: object) -> None:
        raise ValueError

    monkeypatch.setattr(request_template.ReadTemplate, "__init__", refuse)
    with recorded_requests() as operations:
        assert read(fs, folder) == [data(name) for name in NAMES]
    assert operations == ["GetObject"] * len(NAMES)


@pytest.mark.slow
def test_left_while_reading(server: LocalS3, proxy: FaultProxy, folder: str) -> None:
    """Reads that are given up write to no memory any more."""
    far = through(proxy, server)
    made = [bytearray(960) for _ in NAMES]
    wanted = [(f"{folder}/{name}", 0, memoryview(each), 960) for name, each in zip(NAMES, made, strict=True)]
    proxy.faults.append(Fault("GET", skip=5, times=99, delay=0.5))
    with pytest.raises(fsspec.FSTimeoutError):
        far.readinto_objects(wanted, timeout=0.3)
    before = [bytes(each) for each in made]
    time.sleep(1)
    assert [bytes(each) for each in made] == before
    assert not all(any(each) for each in before)
    proxy.faults.clear()
    assert read(far, folder) == [data(name) for name in NAMES]
