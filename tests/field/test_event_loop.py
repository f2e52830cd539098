"""Locks and writes of journals do not stall the event loop that all operations share; and event loops that end."""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from forked import python

from fsspec_csx.s3 import upload_journal
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

SIZE = 12 * 2**20


class Held:
    """Lets each lock wait, as on a network filesystem whose lock another process holds."""

    def __init__(self) -> None:
        self.reached, self.release = threading.Event(), threading.Event()
        self._flock = fcntl.flock

    def __call__(self, descriptor: int, operation: int) -> None:
        self.reached.set()
        assert self.release.wait(60)
        self._flock(descriptor, operation)


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Held()
    monkeypatch.setattr(fcntl, "flock", made)
    yield made
    made.release.set()


@pytest.mark.parametrize("verb", ["put_file", "get_file"])
def test_lock_of_another_process(fs: CSXFileSystem, bucket: str, tmp_path: Path, held: Held, verb: str) -> None:
    """While a resumable transfer waits for a lock, another operation on the same loop is served."""
    data, local = os.urandom(SIZE), tmp_path / "local"
    fs.pipe_file(f"{bucket}/key", data)
    local.write_bytes(data)
    paths = [str(local), f"{bucket}/key"]
    with ThreadPoolExecutor(1) as threads:
        transfer = threads.submit(getattr(fs, verb), *paths[:: 1 if verb == "put_file" else -1], resumable=True)
        assert held.reached.wait(60)
        assert fs.cat_file(f"{bucket}/key", start=0, end=4) == data[:4]
        assert not transfer.done()
        held.release.set()
        transfer.result(60)
    assert local.read_bytes() == fs.cat_file(f"{bucket}/key") == data


def test_timeout_during_a_lock(
    fs: CSXFileSystem, bucket: str, tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that times out returns only when its thread has ended, and leaves no file open."""
    (tmp_path / "local").write_bytes(bytes(SIZE))
    opened: list[int] = []
    own: Any = upload_journal.open_owned

    def noted(*args: Any) -> int:
        opened.append(own(*args))
        return opened[-1]

    monkeypatch.setattr(upload_journal, "open_owned", noted)

    def release() -> None:
        assert held.reached.wait(60)
        time.sleep(0.8)
        held.release.set()

    with ThreadPoolExecutor(1) as threads:
        threads.submit(release)
        for timeout in (0.5, 5, 50):
            with pytest.raises(fsspec.FSTimeoutError):
                fs.put_file(str(tmp_path / "local"), f"{bucket}/key", resumable=True, timeout=timeout)
            if opened:  # or a busy machine had not come so far
                break
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


SEVERAL_LOOPS = """
import asyncio, fsspec, pytest, sys
fs = fsspec.filesystem("s3", asynchronous=True)

async def copy():
    await fs._pipe_file(sys.argv[1], b"data")
    assert await fs._cat_file(sys.argv[1]) == b"data"

async def copy_in_two_loops():
    await copy()
    with pytest.raises(RuntimeError, match="belongs to another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(copy()))
    await copy()

for _ in range(3):
    asyncio.run(copy())
asyncio.run(copy_in_two_loops())
"""
LOOPS_AT_ONCE = """
import asyncio, concurrent.futures, fsspec, sys, threading
fs = fsspec.filesystem("s3", asynchronous=True)
asyncio.run(fs._pipe_file(sys.argv[1], b"data"))
begin = threading.Barrier(2)

async def read():
    begin.wait()
    return await asyncio.wait_for(fs._cat_file(sys.argv[1]), 20)

def found(reading):
    error = reading.exception()
    assert error is None or "belongs to another event loop" in str(error), error
    return error is None and reading.result()

for _ in range(5):
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert b"data" in [found(each) for each in [threads.submit(lambda: asyncio.run(read())) for _ in range(2)]]
"""
CLOSED_BEFORE_THE_FILE = """
import asyncio, fsspec, pytest, sys, threading
loop = asyncio.new_event_loop()
thread = threading.Thread(target=loop.run_forever)
thread.start()
fs = fsspec.filesystem("s3", loop=loop)
fs.pipe_file(sys.argv[1], b"data")
file = fs.open(sys.argv[1], "wb", block_size=5 * 2**20)
file.write(bytes(11 * 2**20))
loop.call_soon_threadsafe(loop.stop)
thread.join()
loop.close()
for call in (file.close, lambda: fs.cat_file(sys.argv[1])):
    with pytest.raises(RuntimeError, match="event loop of this filesystem was closed"):
        call()
"""


@pytest.mark.parametrize(
    "program", [SEVERAL_LOOPS, LOOPS_AT_ONCE, CLOSED_BEFORE_THE_FILE], ids=["several", "at_once", "closed"]
)
def test_loops_that_end(environment: LocalS3, fs: CSXFileSystem, bucket: str, program: str) -> None:
    """``asyncio.run`` may be called again with one filesystem; no call waits for a loop that is over."""
    subprocess.run([*python(), "-c", program, f"{bucket}/key"], check=True, timeout=60)
    assert fs.cat_file(f"{bucket}/key") == b"data"
