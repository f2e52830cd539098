"""A slow connection is replaced, so that it does not decide how long a transfer takes."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from proxy import Fault, FaultProxy, Request, error_answer, proxy_by, through

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import slow_connections
from fsspec_csx.testing import LocalS3

MIB = 2**20
RANGES = 10
PART, PARTS = 5 * MIB, 8
DATA = os.urandom(RANGES * 4 * MIB)
PATH = "slow/object"
LAST = (RANGES - 1) * 4 * MIB


@pytest.fixture(scope="module", autouse=True)
def objects(server: LocalS3) -> None:
    """An object of ten ranges."""
    fsspec.filesystem("s3", **server.storage_options()).pipe_file(PATH, DATA)


@pytest.fixture(autouse=True)
def least_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is slow after two seconds: a busy machine may take as long as others do by themselves."""
    monkeypatch.setattr(slow_connections, "_LEAST_SECONDS", 2.0)


@pytest.fixture(params=["http", pytest.param("https", marks=pytest.mark.slow)])
def proxy(request: pytest.FixtureRequest, server: LocalS3, tmp_path: Path) -> Iterator[FaultProxy]:
    """A proxy before the server, with and without TLS."""
    with proxy_by(request.param, server, tmp_path) as running:
        yield running


@pytest.fixture
def fs(server: LocalS3, proxy: FaultProxy) -> CSXFileSystem:
    """A filesystem behind the proxy."""
    return through(proxy, server)


def loaded(fs: CSXFileSystem) -> float:
    """Load the object, check it, and return the seconds that it took."""
    began = time.monotonic()
    assert fs.cat_file(PATH) == DATA
    return time.monotonic() - began


def is_last(request: Request) -> bool:
    """Whether a request is for bytes of the last range."""
    return request.span is not None and request.span[0] >= LAST


@pytest.mark.parametrize(
    "slow",
    [
        pytest.param({"rate": 50_000}, marks=pytest.mark.slow),
        pytest.param({"delay": 100.0}, marks=pytest.mark.slow),
        {"stall_down": MIB + 5},
    ],
    ids=str,
)
def test_one_slow_connection(fs: CSXFileSystem, proxy: FaultProxy, slow: dict[str, Any]) -> None:
    """A connection that sends slowly, answers late or stalls is replaced; only the missing bytes are fetched again."""
    proxy.faults = [Fault("GET", when=is_last, **slow)]
    assert loaded(fs) < 25
    assert len(proxy.made("GET")) == RANGES + 1
    first, end = proxy.made("GET")[-1].span or (0, 0)
    assert end == len(DATA)
    assert LAST + (MIB + 5 if "stall_down" in slow else 0) <= first < end
    assert first > LAST or "delay" in slow
    proxy.faults, proxy.requests = [], []
    loaded(fs)
    assert len(proxy.made("GET")) == RANGES


@pytest.mark.slow
def test_all_slow(fs: CSXFileSystem, proxy: FaultProxy) -> None:
    """Where all connections are slow, none is replaced."""
    proxy.faults = [Fault("GET", times=99, rate=3 * MIB)]
    loaded(fs)
    assert len(proxy.made("GET")) == RANGES


@pytest.mark.slow
def test_busy_store(fs: CSXFileSystem, proxy: FaultProxy) -> None:
    """A store that is busy is waited for."""
    proxy.faults = [Fault("GET", when=is_last, answer=error_answer(503, "SlowDown", {"Retry-After": "4"}))]
    assert loaded(fs) > 4
    assert len(proxy.made("GET")) == RANGES + 1


@pytest.mark.slow
def test_few_are_replaced(fs: CSXFileSystem, proxy: FaultProxy) -> None:
    """If the other connections are slow too, the last of them are waited for."""
    proxy.faults = [Fault("GET", when=is_last, times=99, rate=MIB)]
    loaded(fs)
    assert RANGES < len(proxy.made("GET")) <= RANGES + 4


def is_last_object(request: Request) -> bool:
    """Whether a request is for the last of the small objects."""
    return request.path.endswith("small-19")


# -- uploads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "slow",
    [
        pytest.param({"rate": 50_000}, marks=pytest.mark.slow),
        pytest.param({"delay": 100.0}, marks=pytest.mark.slow),
        {"stall_up": MIB + 5},
    ],
    ids=str,
)
def test_one_slow_part(fs: CSXFileSystem, proxy: FaultProxy, slow: dict[str, Any]) -> None:
    """A part that is sent slowly, is answered late or stalls is sent again, once."""
    proxy.faults = [Fault("PUT", "partNumber=8&", **slow)]
    began = time.monotonic()
    saved(fs)
    assert time.monotonic() - began < 25
    assert len(proxy.made("PUT", "partNumber=8&")) == 2
    assert len(proxy.made("PUT")) == PARTS + 1
    assert fs.cat_file(f"{PATH}-sent") == DATA


def test_one_slow_object(fs: CSXFileSystem, proxy: FaultProxy) -> None:
    """One of many objects that stalls before it is sent completely is sent again."""
    contents = {f"slow/small-{number}": os.urandom(200_000) for number in range(19)} | {
        "slow/small-19": DATA[: 7 * MIB]
    }
    proxy.faults = [Fault("PUT", when=is_last_object, stall_up=1000)]
    began = time.monotonic()
    fs.pipe(contents)
    assert time.monotonic() - began < 25
    assert len(proxy.made("PUT")) == len(contents) + 1
    assert fs.cat(list(contents)) == contents


def test_late_object(fs: CSXFileSystem, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that was sent completely is not sent again: a late copy could replace a newer object."""
    monkeypatch.setattr(slow_connections, "_LEAST_SECONDS", 0.3)
    stored = threading.Event()
    proxy.faults = [Fault("PUT", when=is_last_object, delay=1.5, after=stored.set)]
    fs.pipe({f"slow/small-{number}": b"old" for number in range(20)})
    fs.pipe_file("slow/small-19", b"new")
    assert stored.wait(60)
    assert fs.cat_file("slow/small-19") == b"new"
    assert len(proxy.made("PUT")) == 21


@pytest.mark.slow
def test_few_parts_are_sent_again(fs: CSXFileSystem, proxy: FaultProxy) -> None:
    """If the other connections are slow too, the last of them are waited for."""
    proxy.faults = [Fault("PUT", "partNumber=8&", times=99, rate=MIB)]
    saved(fs)
    assert PARTS < len(proxy.made("PUT")) <= PARTS + 4
    assert fs.cat_file(f"{PATH}-sent") == DATA


@pytest.mark.slow
def test_held_process(fs: CSXFileSystem, proxy: FaultProxy) -> None:
    """Time in which no thread of this process could run does not count as that of a slow request."""

    def hold() -> None:
        deadline = time.monotonic() + 60
        while sum(request.ended > 0 for request in proxy.made("PUT")) < PARTS - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        ctypes.PyDLL(None).usleep(4_000_000)  # with the GIL

    proxy.faults = [Fault("PUT", "partNumber=8&", before=hold)]
    saved(fs)
    assert len(proxy.made("PUT")) == PARTS


def test_interrupted_stall(fs: CSXFileSystem, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving up a file ends the connection of a part that stalls: nothing waits for the time limit."""
    monkeypatch.setattr(slow_connections, "_LEAST_SECONDS", 3600.0)
    stalls = threading.Event()
    proxy.faults = [Fault("PUT", "partNumber=6&", stall_up=MIB + 5, before=stalls.set)]
    began = time.monotonic()
    with pytest.raises(KeyError), fs.open(f"{PATH}-sent", "wb", block_size=PART) as file:
        file.write_borrowed(view_without_owner(DATA))  # so that no thread may use it when the file has ended
        assert stalls.wait(60)
        raise KeyError
    assert time.monotonic() - began < 25
    assert not proxy.made("POST", "uploadId=")


def view_without_owner(data: bytes) -> memoryview:
    """A view as torch.save writes it: the memory may be freed at any time afterwards."""
    made = ctypes.pythonapi.PyMemoryView_FromMemory
    made.argtypes, made.restype = (ctypes.c_char_p, ctypes.c_ssize_t, ctypes.c_int), ctypes.py_object
    view: memoryview = made(data, len(data), 0x100)  # PyBUF_READ
    assert view.obj is None
    return view


def saved(fs: CSXFileSystem) -> None:
    """Write the object in parts."""
    with fs.open(f"{PATH}-sent", "wb", block_size=PART) as file:
        file.write_borrowed(DATA)
