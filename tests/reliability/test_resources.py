"""Processes that fork, end, or lose threads and event loops during an operation; and the resources they need."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from proxy import Fault, FaultProxy, fault_proxy, through
from stage import blob, save_small
from victims import CleanProcess

from fsspec_csx.manage.gc import clear, leftovers
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

MIB = 2**20


@pytest.fixture(scope="module")
def clean() -> Iterator[CleanProcess]:
    """The process from which others are forked."""
    with CleanProcess() as running:
        yield running


@pytest.fixture
def proxy(server: LocalS3) -> Iterator[FaultProxy]:
    """A proxy before the server, which takes its time for each part."""
    with fault_proxy(server.endpoint_url) as running:
        running.faults = [Fault("PUT", query="partNumber", times=999, delay=0.7)]
        yield running


# The status of the process, whether the object is the new one, and whether an upload may be left.
ENDINGS: dict[str, tuple[int, bool, bool]] = {
    "fork_in_a_save": (0, True, False),
    "thread_that_dies": (0, False, False),
    "end_beside_a_daemon": (7, False, True),
    "end_in_async_save": (7, True, False),
    "end_with_open_file": (7, False, False),
    "loop_closed_early": (0, False, False),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_endings(
    clean: CleanProcess, proxy: FaultProxy, server: LocalS3, fs: CSXFileSystem, bucket: str, ending: str
) -> None:
    """It ends with a status of its own; the object is the old or the new one, and what is left can be cleared."""
    status, is_new, may_be_left = ENDINGS[ending]
    fs.pipe_file(f"{bucket}/x.mdl", save_small())
    environment = {**server.environment(), "AWS_ENDPOINT_URL_S3": proxy.url}
    ended = threading.Event()
    if "daemon" in ending:  # whose save must not be done before a busy machine has ended the process
        proxy.faults[0].before = lambda: ended.wait(60)
    report = clean.run(f"endings:{ending}", f"s3://{bucket}/x.mdl", environment=environment)
    ended.set()
    assert report[0] == status, report[1]
    assert fs.cat_file(f"{bucket}/x.mdl") == (blob(2) if is_new else save_small())
    options = server.storage_options()
    left = leftovers(f"s3://{bucket}", older_than=timedelta(0), storage_options=options)
    assert may_be_left or not left
    assert clear(left) == {}
    assert fs.list_multipart_uploads(bucket) == []


def test_memory(clean: CleanProcess, server: LocalS3, bucket: str) -> None:
    """A small machine can save and load what is large: both take a few MiB of their own, and a write of pieces 64."""
    status, said = clean.run("endings:memory", f"s3://{bucket}/x.mdl", environment=server.environment())
    assert not status, said
    report = json.loads(said)
    assert report["save"] < 32, report
    assert -32 < report["load"] < 32, report  # so the 200 MiB that were loaded have been seen
    assert report["write"] < 80, report


class Together:
    """Holds requests until as many as expected are there at the same moment, and a little longer."""

    def __init__(self, expected: int) -> None:
        self.most = self._now = 0
        self._expected = expected
        self._changed = threading.Condition()

    def hold(self) -> None:
        with self._changed:
            self._now += 1
            self.most = max(self.most, self._now)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.most >= self._expected, 60)
        time.sleep(0.1)
        with self._changed:
            self._now -= 1


def held(proxy: FaultProxy, expected: int, method: str, query: str = "") -> Together:
    """Hold all requests of a kind but the first, which is made alone."""
    together = Together(expected)
    proxy.faults = [Fault(method, query=query, skip=1, times=999, before=together.hold)]
    return together


@pytest.mark.parametrize("number", [1, 3])
def test_max_concurrency(server: LocalS3, proxy: FaultProxy, fs: CSXFileSystem, bucket: str, number: int) -> None:
    """``max_concurrency`` is how many requests are under way, of reads and of writes."""
    far = through(proxy, server, max_concurrency=number)
    data = bytes(range(256)) * (48 * MIB // 256)
    together = held(proxy, number, "PUT", "partNumber")
    far.pipe_file(f"{bucket}/x", data)
    assert len(proxy.made("PUT", "partNumber")) == 9
    assert together.most == number
    together = held(proxy, number, "PUT", "partNumber")
    with far.open(f"{bucket}/y", "wb") as file:
        for start in range(0, len(data), MIB):
            file.write(data[start : start + MIB])
    assert together.most == number
    together = held(proxy, number, "GET")
    assert far.cat_file(f"{bucket}/x") == data
    assert together.most == number


@pytest.mark.parametrize(("options", "sizes"), [({}, [5, 5, 5, 5]), ({"block_size": 6 * MIB}, [6, 6, 6, 2])])
def test_block_size(
    server: LocalS3, proxy: FaultProxy, fs: CSXFileSystem, bucket: str, options: dict[str, Any], sizes: list[int]
) -> None:
    """``block_size`` is that of the parts, and so of the memory that each takes."""
    proxy.faults = []
    with through(proxy, server).open(f"{bucket}/x", "wb", **options) as file:
        for number in range(20):
            file.write(bytes([number]) * MIB)
    parts = proxy.made("PUT", "partNumber")
    assert sorted(one.body / MIB for one in parts) == sorted(sizes)
    assert fs.cat_file(f"{bucket}/x") == b"".join(bytes([number]) * MIB for number in range(20))
