"""Processes that fork: DataLoader workers of every kind, and children that inherit an open file."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from commands import running
from forked import python
from proxy import Fault, fault_proxy
from thinning import thinned

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

WORKERS = """
import sys, fsspec, torch

class Objects(torch.utils.data.Dataset):
    def __init__(self, fs, path):
        self.fs, self.path = fs, path
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return self.fs.cat_file(self.path)[index]

if __name__ == "__main__":
    method, path = sys.argv[1:]
    workers = 2 if method == "fork" else 1  # each of the others imports torch first
    fs = fsspec.filesystem("s3")
    assert fs.cat_file(path) == b"12345678"  # connected before the workers start
    loader = torch.utils.data.DataLoader(Objects(fs, path), num_workers=workers, multiprocessing_context=method)
    assert bytes(int(batch[0]) for batch in loader) == b"12345678"
"""
INHERITED = """
import os, sys, fsspec

with fsspec.open(sys.argv[1], "wb", default_block_size=5 * 2**20) as file:
    file.write(b"a" * (11 * 2**20))
    child = os.fork()
    if not child:
        sys.exit(0)  # leaves the block, finalizers and all
    assert os.waitpid(child, 0)[1] == 0
    file.write(b"b")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", thinned(["fork", "spawn", "forkserver"], "fork"))
def test_data_loader_workers(environment: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path, method: str) -> None:
    """Workers use a filesystem that the parent was connected with, however they are started."""
    fs.pipe_file(f"{bucket}/key", b"12345678")
    (tmp_path / "workers.py").write_text(WORKERS)
    subprocess.run([*python(), str(tmp_path / "workers.py"), method, f"{bucket}/key"], check=True, timeout=100)


@pytest.mark.slow
def test_child_leaves_the_parents_file_alone(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """A forked child that ends neither publishes nor aborts what its parent is writing."""
    subprocess.run([*python(), "-c", INHERITED, f"s3://{bucket}/key"], check=True, timeout=100)
    assert fs.cat_file(f"{bucket}/key") == b"a" * (11 * 2**20) + b"b"


CONNECTED = """
import os, sys
import s3fs.core
import fsspec

fsspec.filesystem("s3").ls(sys.argv[1])
sync, s3fs.core.sync = s3fs.core.sync, None  # in the child it would wait for the event loop of the parent
child = os.fork()
if not child:
    os._exit(0)
s3fs.core.sync = sync
assert os.waitpid(child, 0)[1] == 0
"""


def test_child_closes_no_connection_of_its_parent(environment: LocalS3, bucket: str) -> None:
    """A forked child does not wait for the event loop of its parent to close the parent's connections."""
    done = subprocess.run([*python(), "-c", CONNECTED, bucket], check=True, timeout=100, capture_output=True, text=True)
    assert done.stderr == ""


READING = """
import os, sys, fsspec

path, endpoint = sys.argv[1:]
data = fsspec.filesystem("s3").cat_file(path)
file = fsspec.filesystem("s3", endpoint_url=endpoint).open(path, "rb")
read = b"".join(file.read(100_000) for _ in range(15))
assert not file.cache._chunks[-1].data.done()  # is on its way to the parent
child = os.fork()
if child:
    print("forked", flush=True)
read += file.read()
assert read == data
if not child:
    file.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


def test_child_reads_on_in_the_parents_file(
    environment: LocalS3, server: LocalS3, fs: CSXFileSystem, bucket: str
) -> None:
    """What its parent is fetching ahead at the fork, a child that has the file open fetches for itself."""
    fs.pipe_file(f"{bucket}/key", os.urandom(9 * 2**20))
    with fault_proxy(server.endpoint_url) as proxy:
        late, go = lambda request: request.span is not None and request.span[0] > 3 * 2**19, threading.Event()
        proxy.faults = [Fault("GET", when=late, times=99, before=lambda: go.wait(60))]
        command = [*python(), "-c", READING, f"s3://{bucket}/key", proxy.url]
        with running(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "forked\n"
            go.set()
            assert process.wait(100) == 0
