"""``cszoo checkpoint doctor --bench``: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
from datetime import timedelta

import pytest
from commands import DONE, USAGE, cszoo, failure, running
from forked import python
from proxy import Fault, error_answer, fault_proxy

from fsspec_csx.doctor.benchmark import MOST_WRITTEN, PIECE, benchmark
from fsspec_csx.manage.gc import leftovers
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3


@pytest.mark.slow
def test_shows_each_number_of_requests(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """It shows the speed of each number and the default; what was there stays, and what it wrote is gone."""
    fs.pipe_file(f"{bucket}/run/model.mdl", b"data")
    done = cszoo("doctor", f"s3://{bucket}/run", "--bench", "--seconds", "2")
    assert done.returncode == DONE, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("first byte: ")
    assert [line.split()[0] for line in lines[2:7]] == ["1", "4", "16", "64", "default"]
    assert "max_concurrency: " in done.stdout
    assert done.stderr.startswith("cszoo: measuring latency\n")
    assert fs.find(bucket) == [f"{bucket}/run/model.mdl"]


def test_json(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """With --json and --quiet there is one object, with the bytes that moved, and nothing else."""
    done = cszoo("doctor", f"s3://{bucket}", "--bench", "--seconds", "1", "--json", "--quiet")
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert [each["requests"] for each in found["trials"]] == [1, 4, 16, 64, None]
    assert found["written"] == PIECE + sum(each["nbytes"] for each in found["trials"] if each["upload"])
    assert found["written"] <= PIECE + MOST_WRITTEN
    assert {"latency", "latency_p90", "default_reaches", "max_concurrency", "endpoint"} <= found.keys()
    assert fs.find(bucket) == []


def test_objects_have_names_that_gc_knows(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """What a killed process leaves are objects that gc deletes."""
    with benchmark((bucket, "run/"), seconds=0.2):
        left = fs.find(bucket)
        found = leftovers(f"s3://{bucket}/run", older_than=timedelta(0))
    assert left
    assert sorted(each.path for each in found) == [f"s3://{each}" for each in left]
    assert fs.find(bucket) == []


def test_versions_are_deleted(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """In a bucket that keeps versions, none of its objects stay."""
    fs.call_s3("put_bucket_versioning", Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    with benchmark((bucket, ""), seconds=0.2):
        pass
    kept = fs.call_s3("list_object_versions", Bucket=bucket)
    assert not kept.get("Versions")
    assert not kept.get("DeleteMarkers")


@pytest.mark.slow
def test_refused(server: LocalS3, fs: CSXFileSystem, bucket: str, new_bucket: str) -> None:
    """Who may not write gets one error; a missing bucket is not created; without a bucket it does not begin."""
    reader = server.environment("reader")
    cause, _ = failure(cszoo("doctor", f"s3://{bucket}", "--bench", "--quiet", environment=reader))
    assert bucket in cause
    cause, _ = failure(cszoo("doctor", f"s3://{new_bucket}", "--bench", "--quiet", environment=server.environment()))
    assert new_bucket in cause
    assert not fs.exists(new_bucket)
    failure(cszoo("doctor", "--bench"))
    assert cszoo("doctor", f"s3://{bucket}", "--bench", "--seconds", "0").returncode == USAGE


def test_error_in_the_midst(server: LocalS3, fs: CSXFileSystem, bucket: str) -> None:
    """An error while many objects are written is raised, and those that were written are deleted."""
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("PUT", skip=9, times=999, answer=error_answer(403, "AccessDenied"))]
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        with pytest.raises(PermissionError), benchmark((bucket, ""), storage_options=options, seconds=5):
            pytest.fail("it was measured")
        assert len(proxy.made("PUT")) > 9
    assert fs.find(bucket) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(environment: LocalS3, fs: CSXFileSystem, bucket: str, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and SIGHUP in the midst of an upload leave nothing behind."""
    command = [*python(), "-m", "fsspec_csx", "checkpoint", "doctor", f"s3://{bucket}", "--bench"]
    with running(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr is not None
        while "upload" not in (line := process.stderr.readline()):
            assert line
        process.send_signal(number)
        process.stderr.read()
        assert process.wait(60) == 128 + number
    assert fs.find(bucket) == []
