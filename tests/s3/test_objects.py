"""Many objects read straight into memory: all of them as the server holds them, whatever goes wrong on the way."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator

import fsspec
import pytest
from conftest import recorded_requests
from proxy import Fault, FaultProxy, error_answer, fault_proxy, through

from fsspec_csx.errors import ChecksumError, ObjectNotFoundError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import request_template
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


@pytest.fixture
def proxy(server: LocalS3) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with fault_proxy(server.endpoint_url) as running:
        yield running


def read(fs: CSXFileSystem, folder: str, size: int = 960) -> list[bytes]:
    """All the objects, read into memory."""
    made = [bytearray(size) for _ in NAMES]
    wanted = [(f"{folder}/{name}", 0, memoryview(each), size) for name, each in zip(NAMES, made, strict=True)]
    advanced: list[int] = []
    sizes = fs.readinto_objects(wanted, advanced.append)
    assert sizes == [960] * len(NAMES)
    assert sum(advanced) == size * len(NAMES)
    return [bytes(each) for each in made]


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
    """What does not come at once is asked for again."""
    far = through(proxy, server)
    proxy.faults.append(fault)
    assert read(far, folder) == [data(name) for name in NAMES]
    assert fault.times == 0


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

    monkeypatch.setattr(request_template.RequestTemplate, "__init__", refuse)
    with recorded_requests() as operations:
        assert read(fs, folder) == [data(name) for name in NAMES]
    assert operations == ["GetObject"] * len(NAMES)


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
