"""Machines with few resources: few files, few threads, one processor, one request at a time."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import MIB

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

# Objects of some parts, by every way that they can go, and many small ones.
WORK = """
import os, resource, sys, threading
import fsspec

folder, target = sys.argv[1:]
fs = fsspec.filesystem("s3", **{options})
data = os.urandom(12 * 2**20)
assert fs.exists(folder.partition("/")[0])  # the first request, for which the name of the host is looked up in a thread
{limit}
with fs.open(f"{{folder}}/x", "wb") as file:
    file.write(bytearray(data))
with fs.open(f"{{folder}}/x", "rb") as file:
    assert file.read() == data
fs.get_file(f"{{folder}}/x", target)
fs.put_file(target, f"{{folder}}/y")
fs.cp_file(f"{{folder}}/y", f"{{folder}}/z")
assert fs.cat_file(f"{{folder}}/z") == data
fs.pipe({{f"{{folder}}/many/{{number}}": b"%d" % number for number in range(100)}})
found = fs.cat([f"{{folder}}/many/{{number}}" for number in range(100)])
assert sorted(map(int, found.values())) == list(range(100))
fs.rm(folder, recursive=True)
print("done")
"""
# As where the system refuses: its own limit does not hold for the superuser.
THREADS = """
start = threading.Thread.start
def limited(thread):
    if threading.active_count() >= {count}:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = limited
"""
LIMITS = {
    "files": "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
    "processors": "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])",
    "threads": THREADS.format(count=5),
    "none": "",
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("files", {"default_block_size": 5 * MIB, "max_concurrency": 50}),
    ("processors", {}),
    ("threads", {}),
    ("none", {"max_concurrency": 1}),
]


def run(folder: str, target: Path, limit: str, options: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """What became of a process that does all of this under a limit."""
    command = [sys.executable, "-c", WORK.format(limit=limit, options=options), folder, str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    ("limit", "options"),
    [pytest.param(*case, id=case[0], marks=[] if case[0] in ("files", "none") else pytest.mark.long) for case in CASES],
)
def test_little_suffices(
    environment: LocalS3, bucket: str, tmp_path: Path, limit: str, options: dict[str, Any]
) -> None:
    """All is done with few resources."""
    done = run(f"{bucket}/x", tmp_path / "x", LIMITS[limit], options)
    assert (done.stdout, done.stderr) == ("done\n", "")


@pytest.mark.parametrize("count", [2, 3])
def test_no_thread_at_all(environment: LocalS3, bucket: str, tmp_path: Path, count: int) -> None:
    """Where not one thread can be had, to send or to write a local file, the error says so; no write is half done."""
    done = run(f"{bucket}/x", tmp_path / "x", THREADS.format(count=count), {})
    assert done.returncode == 1
    assert "RuntimeError: No thread can be started to send and fetch bytes. Raise the limit" in done.stderr


NO_FILES = """
import resource, sys
import fsspec

fsspec.filesystem("s3").ls(sys.argv[1])  # loads all that a connection needs
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
for call in ("ls", "cat_file", "pipe_file", "get_file", "open"):
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    if call == "get_file":
        fs.connect()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
    more = {"pipe_file": [b"x"], "get_file": ["/dev/null"]}.get(call, [])
    try:
        getattr(fs, call)(sys.argv[1] + "/x", *more)
    except OSError as error:
        print(call, error.errno, error)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
"""


def test_no_file_descriptor(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """Where no file can be opened, the error of a new filesystem says so, and nothing is retried."""
    fs.pipe_file(f"{bucket}/x", b"x")
    done = subprocess.run(
        [sys.executable, "-c", NO_FILES, bucket], capture_output=True, text=True, timeout=100, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ls", "cat_file", "pipe_file", "get_file", "open"], done.stderr
    for line in lines:
        assert f" {errno.EMFILE} " in line
        assert "Too many open files" in line
        assert "retried" not in line
