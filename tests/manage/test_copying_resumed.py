"""An interrupted copy resumes where it stopped, and leaves nothing that looks like a checkpoint."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import fsspec
import pytest
from checkpoints import MIB
from commands import FAILED, running
from forked import python
from proxy import Fault, FaultProxy, error_answer, fault_proxy

from fsspec_csx import copy
from fsspec_csx.errors import EndpointError
from fsspec_csx.manage import contents
from fsspec_csx.s3 import server_copy
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.resumable_download import PartialFile
from fsspec_csx.storage.atomic import is_temporary
from fsspec_csx.testing import LocalS3

PART = 8 * MIB
DATA = os.urandom(3 * PART + 4321)
PARTS, PIECES = 4, 7
"""Requests of an upload, and of a download."""
BUSY = error_answer(503, "SlowDown")


@pytest.fixture(scope="module")
def proxy(server: LocalS3) -> Iterator[FaultProxy]:
    """A proxy before the server, which has the bucket: the first write of one takes long."""
    fsspec.filesystem("s3", **server.storage_options()).pipe_file("resumed/first", b"x")
    with fault_proxy(server.endpoint_url) as running:
        yield running


@pytest.fixture
def far(
    server: LocalS3, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, environment: LocalS3, tmp_path: Path
) -> FaultProxy:
    """The proxy, without faults, before the endpoint of the environment; failures are not retried for long."""
    proxy.faults, proxy.requests = [], []
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    return proxy


@pytest.fixture
def target() -> str:
    """The URL of an object that does not exist."""
    return f"s3://resumed/{uuid.uuid4().hex[:12]}/x.mdl"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A local file of several parts, in a folder of its own."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "x.mdl").write_bytes(DATA)
    return tmp_path / "here" / "x.mdl"


def records(tmp_path: Path) -> list[Path]:
    """What is remembered of uploads."""
    return sorted((tmp_path / "cache").rglob("*.json"))


def remembered(tmp_path: Path) -> int:
    """How many parts are remembered that the server has."""
    return sum(len(path.read_bytes().splitlines()) - 1 for path in records(tmp_path))


def uploads(fs: CSXFileSystem, url: str) -> list[str]:
    """The uploads of an object that are neither completed nor aborted."""
    bucket, key, _ = fs.split_path(url)
    listed = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", [])
    return [each["UploadId"] for each in listed]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def broken_off(
    far: FaultProxy, source: object, target: object, number: signal.Signals, when: Callable[[], bool]
) -> tuple[int, str]:
    """The exit status and stderr of a command that gets a signal when something is so, while the server waits."""
    going_on = threading.Event()
    for fault in far.faults:
        fault.before = going_on.wait
    command = [*python(), "-m", "fsspec_csx", "checkpoint", "copy", str(source), str(target)]
    with running(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: when() or process.poll() is not None)
        process.send_signal(number)
        # It says that it was interrupted, or nothing: on a busy machine it may take long to see the signal.
        select.select([process.stderr], [], [], 60)
        going_on.set()
        _, report = process.communicate(timeout=100)
    far.faults = []
    return process.returncode, report


def refusing(tmp_path: Path, part: int, *, others: int = PARTS - 1, **harm: Any) -> Fault:
    """Does harm to a part as soon as so many others are remembered."""
    before = lambda: wait_for(lambda: remembered(tmp_path) >= others)  # noqa: E731
    return Fault("PUT", query=f"partNumber={part}&", times=99, before=before, **harm)


# -- uploads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGKILL, -9),
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_upload_goes_on(
    far: FaultProxy,
    fs: CSXFileSystem,
    local: Path,
    target: str,
    tmp_path: Path,
    number: signal.Signals,
    status: int,
) -> None:
    """However the command is ended, the next one sends the other parts only, and there is no object before."""
    far.faults = [Fault("PUT", query="partNumber=", skip=2, times=99)]
    ended, report = broken_off(far, local, target, number, lambda: remembered(tmp_path) == 2)
    assert ended == status, report
    assert ("again to resume" in report) == (number == signal.SIGINT)
    assert not fs.exists(target)
    assert len(uploads(fs, target)) == len(records(tmp_path)) == 1
    far.requests = []
    copy(local, target)
    assert len(sent(far)) == PARTS - 2
    assert fs.cat_file(target) == DATA
    assert (uploads(fs, target), records(tmp_path)) == ([], [])


def test_failed_upload_goes_on(far: FaultProxy, fs: CSXFileSystem, local: Path, target: str, tmp_path: Path) -> None:
    """An upload that the server interrupts resumes too, and the error says so; one that is denied is not kept."""
    far.faults = [refusing(tmp_path, 3, cut_up=MIB)]
    with pytest.raises(EndpointError, match="again to resume"):
        copy(local, target)
    far.faults, far.requests = [Fault("PUT", query="partNumber=3", answer=error_answer(403, "AccessDenied"))], []
    with pytest.raises(PermissionError):
        copy(local, target)
    assert sent(far) == [3]
    assert (uploads(fs, target), records(tmp_path)) == ([], [])
    assert not fs.exists(target)


@pytest.fixture
def begun(far: FaultProxy, local: Path, target: str, tmp_path: Path) -> str:
    """The target of an interrupted upload, of which two of four parts have been sent."""
    far.faults = [refusing(tmp_path, part, others=2, answer=BUSY) for part in (3, 4)]
    with pytest.raises(OSError, match="SlowDown"):
        copy(local, target)
    far.faults, far.requests = [], []
    return target


def sent(far: FaultProxy) -> list[int]:
    """The numbers of the parts that were sent."""
    queries = [parse_qs(one.query) for one in far.made("PUT", "partNumber=")]
    return sorted(int(query["partNumber"][0]) for query in queries)


def test_kept_parts_are_compared(far: FaultProxy, fs: CSXFileSystem, local: Path, begun: str) -> None:
    """A part that the file has other bytes of by now is sent again, though size and time are as before."""
    status = local.stat()
    with local.open("r+b") as file:
        file.seek(PART + 5)
        file.write(b"other")
    os.utime(local, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy(local, begun)
    assert sent(far) == [2, 3, 4]
    assert fs.cat_file(begun) == local.read_bytes()


def test_changed_file_begins_anew(far: FaultProxy, fs: CSXFileSystem, local: Path, begun: str) -> None:
    """An upload of what the file was before is aborted, and another one begun."""
    local.write_bytes(DATA[::-1])
    copy(local, begun)
    assert sent(far) == [1, 2, 3, 4]
    assert fs.cat_file(begun) == DATA[::-1]
    assert uploads(fs, begun) == []


def test_lost_upload_begins_anew(far: FaultProxy, fs: CSXFileSystem, local: Path, begun: str) -> None:
    """An upload that was aborted meanwhile starts again."""
    bucket, key, _ = fs.split_path(begun)
    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=uploads(fs, begun)[0])
    copy(local, begun)
    assert sent(far) == [1, 2, 3, 4]
    assert fs.cat_file(begun) == DATA


def test_replaced_part_is_sent_again(far: FaultProxy, fs: CSXFileSystem, local: Path, begun: str) -> None:
    """A part that the server has, and that is not what was sent, is sent again."""
    bucket, key, _ = fs.split_path(begun)
    named = {"Bucket": bucket, "Key": key, "UploadId": uploads(fs, begun)[0], "ChecksumAlgorithm": "CRC64NVME"}
    fs.call_s3("upload_part", PartNumber=1, Body=b"x" * PART, **named)
    copy(local, begun)
    assert sent(far) == [1, 3, 4]
    assert fs.cat_file(begun) == DATA


@pytest.mark.parametrize("keep", [0, 30, -20])
def test_record_that_is_cut_short(
    far: FaultProxy, fs: CSXFileSystem, local: Path, begun: str, tmp_path: Path, keep: int
) -> None:
    """A record that is empty or cut short is used as far as it goes."""
    record = records(tmp_path)[0]
    record.write_bytes(record.read_bytes()[:keep])
    copy(local, begun)
    assert len(sent(far)) == (3 if keep < 0 else PARTS)
    assert fs.cat_file(begun) == DATA
    assert records(tmp_path) == []


def test_two_at_a_time(far: FaultProxy, fs: CSXFileSystem, local: Path, begun: str, tmp_path: Path) -> None:
    """While another process resumes an upload, this one starts a new upload."""
    with records(tmp_path)[0].open() as record:
        fcntl.flock(record, fcntl.LOCK_EX)
        copy(local, begun)
    assert sent(far) == [1, 2, 3, 4]
    assert fs.cat_file(begun) == DATA
    assert len(uploads(fs, begun)) == 1  # the other's


def test_nowhere_to_remember(
    far: FaultProxy, fs: CSXFileSystem, local: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be remembered an upload succeeds all the same, and one that fails leaves nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(local))
    far.faults = [Fault("PUT", query="partNumber=4", times=9, answer=BUSY)]
    with pytest.raises(OSError, match="SlowDown"):
        copy(local, target)
    assert uploads(fs, target) == []
    far.faults = []
    copy(local, target)
    assert fs.cat_file(target) == DATA


def test_plain_uploads_leave_nothing(
    far: FaultProxy, fs: CSXFileSystem, local: Path, target: str, tmp_path: Path
) -> None:
    """A file that is not committed aborts its upload."""
    far.faults = [Fault("PUT", query="partNumber=4", times=9, answer=BUSY)]
    with pytest.raises(OSError, match="SlowDown"):
        fsspec.filesystem("s3").put_file(str(local), target)
    assert (uploads(fs, target), records(tmp_path)) == ([], [])


@pytest.mark.slow
def test_server_side_copy_goes_on(
    far: FaultProxy, fs: CSXFileSystem, target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server-side copy in parts resumes, unless the source was replaced."""
    monkeypatch.setattr(server_copy, "_COPIED_WHOLE", PART)
    source = target.replace("x.mdl", "source.mdl")
    fs.pipe_file(source, DATA)
    for data, expected in ((DATA, 1), (DATA[::-1], PARTS)):
        far.faults = [refusing(tmp_path, 4, answer=BUSY)]
        with pytest.raises(OSError, match="SlowDown"):
            copy(source, target, overwrite=True)
        assert len(uploads(fs, target)) == 1
        far.faults, far.requests = [], []
        fs.pipe_file(source, data)
        if data is DATA:
            # The same bytes in the same parts have the same ETag.
            assert fs.info(source)["ETag"] == fs.call_s3("head_object", **place(fs, source))["ETag"]
        copy(source, target, overwrite=True)
        assert len(sent(far)) == expected
        assert fs.cat_file(target) == data
        assert (uploads(fs, target), records(tmp_path)) == ([], [])


def place(fs: CSXFileSystem, url: str) -> dict[str, str]:
    """Bucket and key, as requests name them."""
    bucket, key, _ = fs.split_path(url)
    return {"Bucket": bucket, "Key": key}


@pytest.mark.slow
def test_copy_through_memory_goes_on(
    far: FaultProxy, fs: CSXFileSystem, server: LocalS3, target: str, tmp_path: Path
) -> None:
    """So does one between servers: what was sent is neither fetched nor sent again."""
    source = target.replace("x.mdl", "source.mdl")
    fs.pipe_file(source, DATA)
    far.faults = [refusing(tmp_path, 4, answer=BUSY)]
    with pytest.raises(OSError, match="SlowDown"):
        copy(source, target, source_options=server.storage_options())
    far.faults, far.requests = [], []
    copy(source, target, source_options=server.storage_options())
    assert sent(far) == [4]
    assert fs.cat_file(target) == DATA


def test_damage_on_the_way_is_found(far: FaultProxy, fs: CSXFileSystem, server: LocalS3, target: str) -> None:
    """Between servers, what came damaged of the source does not become the target."""
    source = target.replace("x.mdl", "source.mdl")
    fs.pipe_file(source, DATA)
    far.faults = [Fault("GET", when=lambda request: request.span is not None, flip_down=17)]
    with pytest.raises(OSError, match="checksum"):
        copy(source, target, target_options=server.storage_options())
    assert not fs.exists(target)
    assert uploads(fs, target) == []


# -- downloads ---------------------------------------------------------------------------------------------------------


def fetched(far: FaultProxy) -> int:
    """How many parts were requested."""
    return len([one for one in far.made("GET") if one.span])


@pytest.fixture
def stored(fs: CSXFileSystem, target: str) -> str:
    """The URL of an object of several parts."""
    fs.pipe_file(target, DATA)
    return target


def partial(path: Path) -> Path | None:
    """What has come so far of a file, if anything."""
    return next((each for each in path.parent.iterdir() if is_temporary(each.name)), None)


def came(path: Path) -> int:
    """How many parts of a file have come."""
    found = partial(path)
    if found is None:
        return 0
    with found.open("rb") as file:
        return len(PartialFile(file.fileno(), len(DATA)).marked())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGKILL, -9), (signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
    ids=str,
)
def test_download_goes_on(far: FaultProxy, stored: str, tmp_path: Path, number: signal.Signals, status: int) -> None:
    """However the command is ended, the next one fetches the other parts only; what lies there is no checkpoint."""
    (tmp_path / "down").mkdir()
    path = tmp_path / "down" / "y.mdl"
    far.faults = [Fault("GET", when=lambda request: request.span is not None, skip=2, times=99)]
    ended, report = broken_off(far, stored, path, number, lambda: came(path) == 2)
    assert ended == status, report
    left = [each.name for each in (tmp_path / "down").iterdir()]
    assert len(left) == 1
    assert is_temporary(left[0])
    assert not contents.is_checkpoint(left[0])
    far.requests = []
    copy(stored, path)
    assert fetched(far) == PIECES - 2
    assert path.read_bytes() == DATA
    assert [each.name for each in (tmp_path / "down").iterdir()] == ["y.mdl"]


@pytest.fixture
def half(far: FaultProxy, stored: str, tmp_path: Path) -> Path:
    """The target of an interrupted download, of which some parts have arrived."""
    (tmp_path / "down").mkdir()
    path = tmp_path / "down" / "y.mdl"
    before = lambda: wait_for(lambda: came(path) == 3)  # noqa: E731
    some = lambda request: request.span is not None  # noqa: E731
    far.faults = [Fault("GET", when=some, skip=3, times=99, before=before, cut_down=0)]
    with pytest.raises(EndpointError, match="again to resume"):
        copy(stored, path)
    far.faults, far.requests = [], []
    return path


def test_kept_bytes_are_checked(far: FaultProxy, stored: str, half: Path) -> None:
    """Bytes that are not what came, as after a power failure, are fetched again."""
    found = partial(half)
    assert found
    with found.open("r+b") as file:
        whole = PartialFile(file.fileno(), len(DATA))
        file.seek(whole.span(min(whole.marked()))[0] + 77)
        file.write(b"other")
    copy(stored, half)
    assert fetched(far) == PIECES - 3 + 1
    assert half.read_bytes() == DATA


def test_kept_bytes_may_be_read_in_pieces(
    far: FaultProxy, stored: str, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that arrived are not fetched again if the filesystem returns fewer at a time than requested."""
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, start: read(file, min(size, 100_000), start))
    copy(stored, half)
    assert fetched(far) == PIECES - 3
    assert half.read_bytes() == DATA


def test_replaced_object_begins_anew(far: FaultProxy, fs: CSXFileSystem, stored: str, half: Path) -> None:
    """What came of an object that was replaced meanwhile is removed."""
    fs.pipe_file(stored, DATA[::-1])
    copy(stored, half)
    assert half.read_bytes() == DATA[::-1]
    assert [each.name for each in half.parent.iterdir()] == [half.name]


def test_other_leftovers_stay(far: FaultProxy, stored: str, half: Path) -> None:
    """What another copy or save has begun beside the target is left alone."""
    other = half.parent / f".{half.name}.{'0' * 16}.tmp"
    other.write_bytes(b"x")
    copy(stored, half)
    assert sorted(each.name for each in half.parent.iterdir()) == sorted([half.name, other.name])


def test_download_twice_at_a_time(far: FaultProxy, stored: str, half: Path) -> None:
    """While another process resumes a download, this one starts a new download."""
    found = partial(half)
    assert found
    with found.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        copy(stored, half)
        assert half.read_bytes() == DATA
        assert len([*half.parent.iterdir()]) == 2


def test_damaged_download_begins_anew(far: FaultProxy, stored: str, half: Path) -> None:
    """A byte that is damaged on the way is found by the object's checksum, and the object is fetched again, once."""
    span = (0, 1)
    far.faults = [Fault("GET", when=lambda request: request.span is not None and request.span > span, flip_down=5)]
    copy(stored, half)
    assert fetched(far) == PIECES - 3 + PIECES
    assert half.read_bytes() == DATA


def test_no_room_for_it(far: FaultProxy, stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk has no room for the whole, nothing is fetched, and nothing is left."""
    (tmp_path / "down").mkdir()
    full = os.statvfs(tmp_path)
    report = os.statvfs_result((full.f_bsize, 1, 10, 5, 5, *full[5:]))
    monkeypatch.setattr(os, "fstatvfs", lambda descriptor: report)
    with pytest.raises(OSError, match="No space left") as caught:
        copy(stored, tmp_path / "down" / "y.mdl")
    assert caught.value.errno == errno.ENOSPC
    assert fetched(far) == 0
    assert [*(tmp_path / "down").iterdir()] == []


LIMITED = """
import os, sys
os.fstatvfs = lambda descriptor: os.statvfs_result((4096, 4096, 2**40, 2**40, 2**40, 1, 1, 1, 0, 255))
os.ftruncate = lambda descriptor, size: None
from fsspec_csx.cli import main
from fsspec_csx.s3.transport import slow_connections
slow_connections._LEAST_SECONDS = 3600  # none is replaced, which would be a request more
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_disk_full_meanwhile(far: FaultProxy, stored: str, tmp_path: Path) -> None:
    """If there is no room any more in the midst of it, that is reported at once, and what has come is resumed."""
    (tmp_path / "down").mkdir()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * MIB, 10 * MIB))

    command = [sys.executable, "-c", LIMITED, "checkpoint", "copy", stored, str(tmp_path / "down" / "y.mdl")]
    few = {**os.environ, "FSSPEC_S3": '{"max_concurrency": 10}'}
    done = subprocess.run(command, env=few, capture_output=True, text=True, timeout=100, preexec_fn=limit, check=False)
    assert done.returncode == FAILED
    cause, _ = done.stderr.splitlines()
    assert cause == f"cszoo: {tmp_path / 'down'}: File too large."
    asked = [each.headers["range"] for each in far.made("GET")]
    assert len(asked) == len({*asked}), "no request is made again, as it would not mend the disk"
    assert not (tmp_path / "down" / "y.mdl").exists()


@pytest.mark.slow
def test_file_size_limit(far: FaultProxy, stored: str, tmp_path: Path) -> None:
    """A file that may not grow is an error of two lines, and nothing is left."""
    (tmp_path / "down").mkdir()

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 * MIB, 10 * MIB))

    command = [sys.executable, "-m", "fsspec_csx", "checkpoint", "copy", stored, str(tmp_path / "down" / "y.mdl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, preexec_fn=limit, check=False)
    assert done.returncode == FAILED
    assert "File too large" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert [*(tmp_path / "down").iterdir()] == []


def test_mode_of_the_former_file(far: FaultProxy, stored: str, half: Path) -> None:
    """A file that is replaced keeps its mode, a new one gets that of the umask; a protected one is not replaced."""
    copy(stored, half)
    umask = os.umask(0)
    os.umask(umask)
    assert half.stat().st_mode & 0o777 == 0o666 & ~umask
    half.chmod(0o640)
    copy(stored, half, overwrite=True)
    assert half.stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
def test_seldom_known_checksum(far: FaultProxy, fs: CSXFileSystem, target: str, tmp_path: Path) -> None:
    """An object with another checksum on the server is compared by that."""
    options: dict[str, Any] = {"ChecksumAlgorithm": "CRC32"}
    fs.call_s3("put_object", **place(fs, target), Body=DATA, **options)
    copy(target, tmp_path / "y.mdl")
    assert (tmp_path / "y.mdl").read_bytes() == DATA
    far.faults = [Fault("GET", when=lambda request: request.span is not None, skip=PIECES - 1, flip_down=5)]
    copy(target, tmp_path / "z.mdl")
    assert (tmp_path / "z.mdl").read_bytes() == DATA
    assert not far.faults[0].times
