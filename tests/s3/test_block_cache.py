"""``cache_dir``: repeated reads come from the local disk, and are never wrong or stale."""

from __future__ import annotations

import io
import os
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from conftest import recorded_requests
from forked import python
from proxy import Fault, FaultProxy, fault_proxy

import fsspec_csx
from fsspec_csx import backends
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.s3 import block_cache
from fsspec_csx.s3.block_cache import BLOCK, CachedObject
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

MIB = 2**20
DATA = os.urandom(9 * MIB + 4321)
READ = "import fsspec, sys; sys.stdout.buffer.write(fsspec.open(sys.argv[1], cache_dir=sys.argv[2]).open().read())"

FORKED = """
import os, sys, fsspec

fs = fsspec.filesystem("s3", cache_dir=sys.argv[2])
with fs.open(sys.argv[1]) as file:
    file.read(10)
    with fs.block_cache._lock:  # as a thread has it that does not live in the child
        child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
with fs.open(sys.argv[1]) as file:
    os._exit(len(file.read()) != int(sys.argv[3]))
"""


@pytest.fixture(autouse=True)
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    """No warning of a former test counts."""
    monkeypatch.setattr(block_cache, "_warned", set())


@pytest.fixture
def url(environment: LocalS3, fs: CSXFileSystem, bucket: str) -> str:
    """An object that is new."""
    fs.pipe_file(f"{bucket}/object", DATA)
    return f"s3://{bucket}/object"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a cache of the test's own, which is not made yet."""
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def proxy(server: LocalS3) -> Iterator[FaultProxy]:
    """A proxy before the server."""
    with fault_proxy(server.endpoint_url) as running:
        yield running


@pytest.fixture
def slow(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A proxy by which the environment reaches the server, without faults and recorded requests."""
    proxy.faults, proxy.requests = [], []
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
    return proxy


def read(url: str, folder: Path, **options: Any) -> bytes:
    """The object, by one read through the cache."""
    with fsspec.open(url, cache_dir=folder, **options) as file:
        data: bytes = file.read()
    return data


def files(folder: Path) -> list[Path]:
    """The files of a cache."""
    return sorted(folder.rglob("*.blocks"))


def used(folder: Path) -> int:
    """The bytes on the disk that a cache takes."""
    return sum(path.stat().st_blocks * 512 for path in files(folder))


def fetched(proxy: FaultProxy) -> int:
    """The bytes of objects that came through the proxy."""
    return sum(request.sent for request in proxy.requests if request.method == "GET")


def test_warm_load_sends_one_head(environment: LocalS3, bucket: str, folder: Path) -> None:
    """A checkpoint that was loaded once is loaded, streamed and opened without a GET; a cold load costs no request."""
    url = f"s3://{bucket}/model.mdl"
    state = {f"layer{number}": torch.randn(700, 1000) for number in range(4)} | {"bias": torch.randn(7)}
    fsspec_csx.save(state, url)
    with recorded_requests() as plain:
        fsspec_csx.load(url)
    options = {"cache_dir": folder}
    for operations in (plain, ["HeadObject"]):
        with recorded_requests() as sent:
            loaded = fsspec_csx.load(url, storage_options=options)
        assert len(sent) <= len(operations) + 1  # requests end where blocks do
        assert set(sent) == set(operations)
        assert all(torch.equal(loaded[name], state[name]) for name in state)
    with recorded_requests() as sent:
        streamed = dict(fsspec_csx.stream(url, storage_options=options))
        part = fsspec_csx.load(url, keys=["bias"], storage_options=options)
        with fsspec.open(url, **options) as file:
            opened = torch.load(file)
    assert sent == ["HeadObject"] * 3
    assert all(torch.equal(streamed[name], opened[name]) for name in state)
    assert torch.equal(part["bias"], state["bias"])


def test_parts_come_from_the_cache(url: str, folder: Path) -> None:
    """Reads of any parts, in any order, by any method of a file, give the bytes of the object."""
    with fsspec.open(url, cache_dir=folder) as file:
        for start, length in ((5 * MIB, 100), (0, 10), (3, 3 * MIB), (len(DATA) - 5, 5), (len(DATA) - BLOCK, BLOCK)):
            file.seek(start)
            assert file.read(length) == DATA[start : start + length]
        spans = [(start, memoryview(bytearray(length))) for start, length in ((7 * MIB, 3), (10, MIB), (2 * MIB, 9))]
        file.readinto_many(spans)
        assert all(memory == DATA[start : start + len(memory)] for start, memory in spans)
    with fsspec.open(url, cache_dir=folder) as file:
        assert io.BufferedReader(file).readline() == io.BytesIO(DATA).readline()
    assert read(url, folder) == DATA
    with recorded_requests() as sent:
        assert read(url, folder) == DATA
    assert sent == ["HeadObject"]


def test_by_https(secure_server: tuple[LocalS3, Path], folder: Path) -> None:
    """Records of TLS, which come in other pieces, fill the cache too."""
    server, trusted = secure_server
    options = {**server.storage_options(), "client_kwargs": {"verify": str(trusted)}}
    url = "s3://cached/object"
    fsspec.filesystem("s3", **options).pipe_file(url, DATA)
    for operations in ({"HeadObject", "GetObject"}, {"HeadObject"}):
        with recorded_requests() as sent:
            assert read(url, folder, **options) == DATA
        assert set(sent) == operations


def test_memory_of_an_interrupted_read_is_the_callers(url: str, folder: Path) -> None:
    """A read that ends by an exception writes to no memory afterwards, whether it fills the cache or reads it."""

    def interrupt(count: int) -> None:
        raise ZeroDivisionError

    for _ in range(3):
        memory = memoryview(bytearray(len(DATA)))
        with fsspec.open(url, cache_dir=folder) as file, pytest.raises(ZeroDivisionError):
            file.readinto_many([(0, memory)], advance=interrupt)
        memory[:] = bytes(len(DATA))
        assert read(url, folder) == DATA
        assert memory == bytes(len(DATA))


def test_sparse_reads_fetch_little(url: str, folder: Path, slow: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that wants few bytes of many blocks goes past the cache, rather than to fetch all that is not there."""
    monkeypatch.setattr("fsspec_csx.s3.cached_read._MOST_PADDING", MIB)
    for most in (MIB, 0):
        slow.requests.clear()
        with fsspec.open(url, cache_dir=folder) as file:
            spans = [(start, memoryview(bytearray(10))) for start in range(0, 9 * MIB, 2 * BLOCK)]
            checksums = file.readinto_many(spans, crc32=True)
        assert fetched(slow) <= most
        assert checksums == [zlib.crc32(DATA[start : start + 10]) for start, _ in spans]
        read(url, folder)


def test_replaced_object_is_read_anew(url: str, folder: Path, fs: CSXFileSystem) -> None:
    """An object that was replaced is never read from the cache; a file that was open before keeps its state."""
    assert read(url, folder) == DATA
    with fsspec.open(url, cache_dir=folder) as file:
        fs.pipe_file(url, DATA[::-1])
        assert read(url, folder) == DATA[::-1]
        assert file.read() == DATA
    fs.pipe_file(url, DATA)
    assert read(url, folder) == DATA
    fs.rm_file(url)
    with pytest.raises(FileNotFoundError):
        read(url, folder)


def test_versions_are_objects_of_their_own(environment: LocalS3, fs: CSXFileSystem, bucket: str, folder: Path) -> None:
    """Each version that a path or an argument names is read as itself."""
    aware = fsspec.filesystem("s3", version_aware=True)
    aware.make_bucket_versioned(bucket)
    url = f"s3://{bucket}/versions"
    for number in range(2):
        aware.pipe_file(url, bytes([number]) * MIB)
    versions = [each["VersionId"] for each in aware.object_version_info(url)]
    for _ in range(2):
        for version, number in zip(versions, (1, 0), strict=True):
            data = read(f"{url}?versionId={version}", folder, version_aware=True)
            assert data == bytes([number]) * MIB
    with recorded_requests() as sent:
        read(f"{url}?versionId={versions[0]}", folder, version_aware=True)
    assert "GetObject" not in sent


def test_objects_with_a_customers_key_are_not_cached(environment: LocalS3, bucket: str, folder: Path) -> None:
    """What the caller has encrypted on S3 does not lie on the disk in plain."""
    url = f"s3://{bucket}/secret"
    key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": os.urandom(32).hex()[:32]}
    with fsspec.open(url, "wb", s3_additional_kwargs=key) as file:
        file.write(DATA)
    for _ in range(2):
        with recorded_requests() as sent:
            assert read(url, folder, s3_additional_kwargs=key) == DATA
        assert "GetObject" in sent
    assert not folder.exists()


def test_damage_is_noticed(url: str, folder: Path, slow: FaultProxy, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged block is fetched again, with a warning, and it alone with its neighbours; so is what was cut off."""
    read(url, folder)
    (path,) = files(folder)
    whole = path.read_bytes()
    for damaged, most in ((whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:], 8 * MIB), (whole[: 5 * MIB], 9.1 * MIB)):
        path.write_bytes(damaged)
        caplog.clear()
        slow.requests.clear()
        assert read(url, folder) == DATA
        assert "damaged" in caplog.text
        assert 0 < fetched(slow) < most
        slow.requests.clear()
        assert read(url, folder) == DATA
        assert fetched(slow) == 0
    path.write_bytes(b"")
    assert read(url, folder) == DATA
    assert path.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_share_the_fetching(url: str, folder: Path, slow: FaultProxy, count: int) -> None:
    """Processes that read an object at the same time all get it, and together fetch little more than it once."""
    slow.faults = [Fault("GET", rate=8 * MIB, times=100)]
    command = [*python(), "-c", READ, url, str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    assert all(process.communicate(timeout=100)[0] == DATA for process in running)
    assert fetched(slow) < 1.5 * len(DATA)


@pytest.mark.slow
def test_forked_process(url: str, folder: Path) -> None:
    """A child reads through the cache too, whatever a thread of its parent was doing."""
    subprocess.run([*python(), "-c", FORKED, url, str(folder), str(len(DATA))], check=True, timeout=100)


@pytest.mark.slow
def test_killed_process_leaves_no_partial_data(url: str, folder: Path, slow: FaultProxy) -> None:
    """What a process that was killed has fetched is used, and nothing else: no other process waits for it."""
    slow.faults = [Fault("GET", rate=MIB, times=100)]
    killed = subprocess.Popen([*python(), "-c", READ, url, str(folder)], stdout=subprocess.DEVNULL)
    while not files(folder) or used(folder) < 3 * MIB:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    slow.faults = []
    slow.requests.clear()
    assert read(url, folder) == DATA
    with recorded_requests() as sent:
        assert read(url, folder) == DATA
    assert sent == ["HeadObject"]


def test_least_recently_used_go_first(environment: LocalS3, fs: CSXFileSystem, bucket: str, folder: Path) -> None:
    """The cache stays below its size; what was not used for longest makes room, and is read on where it is open."""
    names = [f"s3://{bucket}/{number}" for number in range(4)]
    for name in names:
        fs.pipe_file(name, DATA[: 2 * MIB])
    size = f"{7 * MIB}B"
    with fsspec.open(names[0], cache_dir=folder, cache_size=size) as first:
        first.read(10)
        for name in (*names[:3], names[1], names[3]):
            assert read(name, folder, cache_size=size) == DATA[: 2 * MIB]
            assert used(folder) <= 7 * MIB
        first.seek(0)
        assert first.read() == DATA[: 2 * MIB]
    kept = []
    for name in (names[3], names[1]):
        with recorded_requests() as sent:
            read(name, folder, cache_size=size)
        kept.append("GetObject" not in sent)
    assert kept == [True, True]
    (folder / "foreign").write_bytes(bytes(8 * MIB))
    assert read(names[0], folder, cache_size=3 * MIB) == DATA[: 2 * MIB]
    assert len(files(folder)) == 1
    assert (folder / "foreign").exists()


def test_larger_object_is_not_cached(url: str, folder: Path) -> None:
    """An object that does not fit is read as without a cache."""
    assert read(url, folder, cache_size=MIB) == DATA
    assert files(folder) == []


def test_full_disk(url: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If the disk is full, reads continue without the cache, after one warning."""
    with fsspec.open(url, cache_dir=folder) as file:
        file.read(10)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (MIB, 4096):  # for the second the file is too large too, if it is to be made
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            assert read(url, folder) == DATA
            assert read(url, folder) == DATA
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        (path,) = files(folder)
        path.unlink()
        path.touch(mode=0o600)
    assert caplog.text.count("cannot be used") == 1
    assert read(url, folder) == DATA


@pytest.mark.skipif(sys.platform != "linux", reason="a folder that nobody can write to is known there")
def test_unusable_folder(url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that cannot be made, is a file, or leads elsewhere by a link is not used, and each is warned of once."""
    (tmp_path / "file").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / f"fsspec_csx-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    for folder in (Path("/proc/cache"), tmp_path / "file", tmp_path / "linked"):
        caplog.clear()
        assert read(url, folder) == read(url, folder) == DATA
        assert caplog.text.count("cannot be used") == 1
    assert not any((tmp_path / "elsewhere").iterdir())


def test_others_neither_read_nor_lead_astray(url: str, folder: Path, tmp_path: Path) -> None:
    """Only the user may enter the folder; a file of the cache that was replaced by a link is not written to."""
    folder.mkdir()
    own = folder / f"fsspec_csx-{os.geteuid()}"
    own.mkdir(mode=0o777)
    read(url, folder)
    (path,) = files(folder)
    assert (own.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    target = tmp_path / "target"
    for link in (os.symlink, os.link):
        target.write_bytes(b"precious")
        path.unlink()
        link(target, path)
        assert read(url, folder) == DATA
        assert target.read_bytes() == b"precious"


def test_damaged_answers_are_not_kept(url: str, folder: Path, slow: FaultProxy) -> None:
    """If a response was interrupted and requested again, the cache has the bytes of the object too."""
    slow.faults = [Fault("GET", cut_down=MIB + 77, times=2)]
    assert read(url, folder) == DATA
    slow.faults = []
    assert read(url, folder) == DATA


def test_checkpoint_that_came_damaged_is_fetched_again(
    environment: LocalS3, bucket: str, folder: Path, slow: FaultProxy
) -> None:
    """A bit that flipped on the way, before the cache, costs one load and not all that follow."""
    url = f"s3://{bucket}/model.mdl"
    fsspec_csx.save({"weight": torch.ones(1_000_000)}, url)
    slow.faults = [Fault("GET", flip_down=MIB, when=lambda request: request.span[1] - request.span[0] > 2 * MIB)]
    with pytest.raises(InvalidCheckpointError):
        fsspec_csx.load(url, storage_options={"cache_dir": folder})
    assert fsspec_csx.load(url, storage_options={"cache_dir": folder})["weight"].sum() == 1_000_000


def test_the_ways_to_name_it(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting and the fsspec configuration name a cache too; a call's own option comes first."""
    with backends.scoped_flags({"csx.storage.s3.cache_dir": str(folder), "csx.storage.s3.cache_size": "1GB"}):
        with fsspec.open(url) as file:
            assert file.fs.block_cache.limit == 10**9
            assert file.read() == DATA
        with fsspec.open(url, cache_dir=None) as file:
            assert file.fs.block_cache is None
    assert len(files(folder)) == 1
    monkeypatch.setitem(fsspec.config.conf, "s3", {"cache_dir": str(folder), "cache_size": "1000000"})
    assert fsspec.filesystem("s3").block_cache.limit == 10**6
    for size in ("much", 0):
        with pytest.raises(ValueError, match="cache_size"):
            fsspec.filesystem("s3", cache_size=size)


@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")  # blockcache leaves its file open
@pytest.mark.parametrize("protocol", ["filecache", "simplecache", "blockcache"])
def test_caches_of_fsspec(environment: LocalS3, bucket: str, folder: Path, protocol: str) -> None:
    """A checkpoint is loaded through the caches that fsspec brings, by us and by torch."""
    url = f"s3://{bucket}/model.mdl"
    state = {"weight": torch.randn(600, 1000), "step": 3}
    fsspec_csx.save(state, url)
    options = {protocol: {"cache_storage": str(folder)}}
    for _ in range(2):
        loaded = fsspec_csx.load(f"{protocol}::{url}", storage_options=options)
        with fsspec.open(f"{protocol}::{url}", **options) as file:
            opened = torch.load(file)
        for each in (loaded, opened):
            assert torch.equal(each["weight"], state["weight"])  # type: ignore[arg-type]
    assert any(folder.iterdir())


def test_claims_are_for_other_processes(tmp_path: Path) -> None:
    """A range that one process fetches is left to it by others, until it is released or the process ends."""
    first, other = (block_cache.BlockCache(tmp_path, MIB).open(("name", "etag"), MIB) for _ in range(2))
    assert isinstance(first, CachedObject)
    assert isinstance(other, CachedObject)
    assert first.claim(0, BLOCK)
    assert first.claim(0, BLOCK)
    assert not other.claim(0, 2 * BLOCK)
    assert other.claim(BLOCK, 2 * BLOCK)
    first.release(0, BLOCK)
    assert other.claim(0, 2 * BLOCK)
    del other
    assert first.claim(0, MIB)


def test_file_is_dropped_while_another_thread_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread gets a file whose descriptor is being closed, as that may soon be another file's."""
    cache, close, found = block_cache.BlockCache(tmp_path, MIB), os.close, []

    def open_and_close(descriptor: int) -> None:
        with ThreadPoolExecutor(1) as thread:
            found.append(thread.submit(cache.open, ("name", "etag"), MIB).result())
        close(descriptor)

    monkeypatch.setattr(os, "close", open_and_close)
    first = cache.open(("name", "etag"), MIB)
    assert first is not None
    del first
    monkeypatch.undo()
    os.utime(found[0].descriptor)
