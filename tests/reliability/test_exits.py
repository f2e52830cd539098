"""What a program leaves behind that ends during an operation, normally or at once."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from forked import python
from proxy import Fault, fault_proxy
from stage import blob

from fsspec_csx.manage.gc import clear, leftovers
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

OLD, NEW = 1, 2
NOISE = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b|Exception ignored|Fatal|Segmentation")
_DAEMONS = r"(?!Fatal|Segmentation)"  # their own errors are reported, where they come as far as that
# The status of the process, which checkpoint is there, whether uploads may be left, and what errors it may print.
EXITS: dict[str, tuple[int, int, bool, str]] = {
    "open_files": (7, OLD, False, ""),
    "open_file_and_error": (1, OLD, False, "KeyError"),
    "threads_too_late": (0, OLD, False, ""),
    "threads_too_late_after_a_load": (0, OLD, False, ""),
    "daemons_that_load": (7, OLD, False, _DAEMONS),
    "daemons_that_save": (7, OLD, True, _DAEMONS),
    "terminated": (-signal.SIGTERM, OLD, True, ""),
    "gone_at_once": (7, OLD, True, ""),
    "child_in_async_save": (0, NEW, False, ""),
    "child_with_open_file": (0, OLD, True, ""),
    "child_that_is_terminated": (0, NEW, True, ""),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", EXITS)
def test_exits(server: LocalS3, fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It ends soon, with its own status and without noise; the checkpoint is whole, and the rest can be cleared."""
    status, seed, may_be_left, said = EXITS[name]
    path = f"{bucket}/x.mdl"
    fs.pipe_file(path, blob(OLD))
    for variable, value in server.environment().items():
        monkeypatch.setenv(variable, value)
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("PUT", query="partNumber", times=999, delay=0.3)]
        over = threading.Event()
        if name == "daemons_that_save":  # which must not be done before a busy machine has ended the process
            proxy.faults[0].before = lambda: over.wait(60)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        command = [*python(), str(Path(__file__).with_name("exits.py")), name, f"s3://{path}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
        over.set()
    assert ended.returncode == status, ended.stderr
    noise = [line for line in ended.stderr.splitlines() if NOISE.match(line)]
    assert all(said and re.match(said, line) for line in noise), ended.stderr
    assert ended.stdout.count("The main thread has ended") == (6 if "too_late" in name else 0)
    assert fs.cat_file(path) == blob(seed)
    left = leftovers(f"s3://{bucket}", older_than=timedelta(0), storage_options=server.storage_options())
    assert may_be_left or not left
    assert clear(left) == {}
    assert fs.list_multipart_uploads(bucket) == []
    assert fs.cat_file(path) == blob(seed)
