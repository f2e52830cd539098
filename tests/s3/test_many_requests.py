"""Objects that one call reads or writes: each by its own name, whichever request is the template."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.callbacks import Callback
from proxy import Fault, error_answer, fault_proxy, through

from fsspec_csx.s3.consistent_read import BytesBuffer
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.concurrency import RequestSlots
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST
from fsspec_csx.testing import LocalS3

# The name of the first ends that of another, from which the template is learned again.
NAMES = ("x", "refused", "a/x", "last", "more/last")


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_learned_anew_from_another_object(
    server: LocalS3, bucket: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objects keep their names when the request that they are made from is one for another object than the first."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    objects = {f"{bucket}/{name}": name.encode() for name in NAMES}
    decoys = {f"{bucket}/a/{name}": b"decoy" for name in NAMES if name != "x"}
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server)
        if method == "GET":
            fs.pipe({**objects, **decoys}, batch_size=1)
        refusal = error_answer(500, "InternalError")
        proxy.faults = [Fault(method, times=1, when=lambda request: request.path.endswith("/refused"), answer=refusal)]
        if method == "PUT":
            fs.pipe(objects, batch_size=1)
            assert sorted(fs.find(bucket)) == sorted(objects)
        assert fs.cat(list(objects), batch_size=1) == objects
        assert proxy.faults[0].done == 1


def test_names_in_headers(server: LocalS3, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """Headers of any characters are sent as they were signed: nothing is refused, and botocore sends only the first."""
    caplog.set_level("DEBUG", "botocore.endpoint")
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(5)}
    for name in ("Grüße", "日本", "50%s"):
        with fault_proxy(server.endpoint_url) as proxy:
            fs = through(proxy, server)
            caplog.clear()
            fs.pipe(objects, ContentDisposition=f'attachment; filename="{name}"')
            assert sum("name=PutObject" in each.message for each in caplog.records if "Making" in each.message) == 1
            assert [request.status for request in proxy.made("PUT")] == [200] * len(objects)
            sent = {request.headers["content-disposition"].encode("latin-1").decode() for request in proxy.made("PUT")}
            assert sent == {f'attachment; filename="{name}"'}


def test_memory_is_free_afterwards(fs: CSXFileSystem, bucket: str) -> None:
    """When a call has returned, only the caller has the bytes: they are freed when the caller drops them."""
    objects = {f"{bucket}/{number}": os.urandom(1000) for number in range(10)}
    fs.pipe(objects)
    gc.collect()
    gc.disable()
    try:
        before = _buffers()
        assert fs.cat([*objects, f"{bucket}/missing"], on_error="omit") == objects
        assert _buffers() == before
    finally:
        gc.enable()


def _buffers() -> int:
    return sum(isinstance(each, BytesBuffer) for each in gc.get_objects())


def test_number_of_small_requests(fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a call makes many requests, and no longer, a far store gets more at a time; also if the call fails."""
    calls: list[int] = []
    monkeypatch.setattr(RequestSlots, "expect_small", lambda _, number: calls.append(number))
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(5)}
    fs.pipe(objects)
    assert fs.cat(list(objects)) == objects
    with pytest.raises(FileNotFoundError):
        fs.cat([*objects, f"{bucket}/missing"])
    assert calls == 3 * [1, -1]
    assert fs.cat_file(f"{bucket}/0") == b"0"
    assert len(calls) == 6


def test_conditions(server: LocalS3, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """Botocore makes each request with a condition: made again after a response, it would fail by what it has made."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(5)}
    with fault_proxy(server.endpoint_url) as proxy, caplog.at_level("DEBUG", "botocore.endpoint"):
        through(proxy, server).pipe(objects, IfNoneMatch="*")
        assert len(proxy.made("PUT")) == len(objects)
    assert sum("name=PutObject" in each.getMessage() for each in caplog.records if "Making" in each.message) == 5


def test_answers_that_only_botocore_understands(server: LocalS3, bucket: str) -> None:
    """Where no answer is as it should be, a few objects are sent twice, and not every other one."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(20)}
    with fault_proxy(server.endpoint_url) as proxy:
        proxy.faults = [Fault("PUT", times=100, answer=(200, {"ETag": '"of another kind"'}, b"<Stored/>"))]
        through(proxy, server).pipe(objects, batch_size=1)
        assert len(proxy.made("PUT")) == len(objects) + 5


def test_sizes_and_kinds(server: LocalS3, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small, empty and large objects come whole, by as many requests as one by one, to memory and to files."""
    sizes = {"a": 10, "b": 0, "c": MIN_REQUEST, "d": MIN_REQUEST + 1, "e": 3, "f": 2 * MIN_REQUEST + 5}
    objects = {f"{bucket}/{name}": os.urandom(size) for name, size in sizes.items()}
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server)
        fs.pipe(objects)
        proxy.requests.clear()
        for path, data in objects.items():
            assert fs.cat_file(path) == data
        alone = len(proxy.made("GET"))
        proxy.requests.clear()
        assert fs.cat(list(objects)) == objects
        assert len(proxy.made("GET")) == alone
        proxy.requests.clear()
        assert fs.cat(list(objects), batch_size=-1) == objects  # no limit, as fsspec has it
        assert len(proxy.made("GET")) == alone
        proxy.requests.clear()
        callback, pwrite = Callback(), os.pwrite
        monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:70_000], at))  # it may take less
        fs.get(list(objects), [str(tmp_path / "got" / name) for name in sizes], callback=callback)
        assert len(proxy.made("GET")) == alone
        assert callback.value == callback.size == len(objects)
    assert {f"{bucket}/{path.name}": path.read_bytes() for path in (tmp_path / "got").iterdir()} == objects


def test_one_missing(fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """An object that is missing is an error of its own; a folder in its place, and a file that is there, stay."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(9)}
    fs.pipe(objects)
    found = fs.cat([*objects, f"{bucket}/missing"], on_error="return")
    assert isinstance(found.pop(f"{bucket}/missing"), FileNotFoundError)
    assert found == objects
    names, folder = [*objects, f"{bucket}/missing"], tmp_path / "got"
    with pytest.raises(FileNotFoundError, match="missing"):
        fs.get(names, [str(folder / name.rpartition("/")[2]) for name in names])
    assert not [path for path in folder.iterdir() if path.read_bytes() != path.name.encode()]


def test_pages_are_no_objects(server: LocalS3, bucket: str) -> None:
    """What a proxy answers in place of the server, without an ETag, is an error, and no object."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(9)}
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server)
        fs.pipe(objects)
        proxy.faults = [Fault("GET", skip=1, times=999, answer=(200, {}, b"<html>Log in</html>"))]
        found = fs.cat(list(objects), on_error="return")
        assert sum(isinstance(each, OSError) for each in found.values()) == len(objects) - 1
        with pytest.raises(OSError, match="ETag"):
            fs.cat_file(next(iter(objects)))
        proxy.faults = [Fault("GET", skip=1, times=2, answer=(200, {}, b"<html>Log in</html>"))]
        assert fs.cat(list(objects), on_error="return").keys() == objects.keys()


def test_of_a_subclass(fs: CSXFileSystem, bucket: str) -> None:
    """A subclass with its own way to read objects is called for each of them."""

    class Reversing(CSXFileSystem):
        async def _cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
            return (await super()._cat_file(path, *args, **kwargs))[::-1]

    objects = {f"{bucket}/{number}": b"abc%d" % number for number in range(9)}
    fs.pipe(objects)
    mine = Reversing(**fs.storage_options, skip_instance_cache=True)
    assert mine.cat(list(objects)) == {name: data[::-1] for name, data in objects.items()}


def test_pools_that_end(fs: CSXFileSystem, bucket: str) -> None:
    """A pool of connections that urllib3 ends, since there are many hosts, fails no call."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(9)}
    fs.pipe(objects)
    for _ in range(2):
        session = fs.transfer.exchange.session
        pool = compat.pool_to(session, fs.endpoint_url)
        session._manager.clear()
        pool.close()  # as urllib3 1.26 does with pools that it drops
        fs.pipe_file(f"{bucket}/0", b"0")
        assert fs.cat(list(objects)) == objects


def test_first_use(fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """A filesystem that was not connected before connects."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(9)}
    fs.pipe(objects)
    mine = CSXFileSystem(**fs.storage_options, skip_instance_cache=True)
    mine.get(list(objects), [str(tmp_path / name.rpartition("/")[2]) for name in objects])
    assert all((tmp_path / name.rpartition("/")[2]).read_bytes() == data for name, data in objects.items())


@pytest.mark.parametrize("method", ["put", "pipe"])
def test_writes_of_all_kinds(server: LocalS3, new_bucket: str, tmp_path: Path, method: str) -> None:
    """Small, empty and large objects of any types are made by a request each, or in parts, in a bucket that is made."""
    sizes = {"a.txt": 10, "b.json": 0, "c": 3 * 2**20, "d": 10 * 2**20, "e.txt": 2**20, "f g+ü": 3}
    contents = {name: os.urandom(size) for name, size in sizes.items()}
    objects = {f"{new_bucket}/{name}": data for name, data in contents.items()}
    callback = _Recorded()
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server)
        for _ in range(2):
            proxy.requests.clear()
            if method == "put":
                for name, data in contents.items():
                    (tmp_path / name).write_bytes(data)
                fs.put([str(tmp_path / name) for name in contents], list(objects), callback=callback)
            else:
                answers = fs.pipe(objects)
                assert [each["ETag"] for each in answers] == [fs.info(path)["ETag"] for path in objects]
            assert fs.cat(list(objects)) == objects
        # In the second call, when the bucket is there; the large one comes in parts.
        assert len([each for each in proxy.made("PUT") if not each.query]) == len(objects) - 1
        if method == "put":
            assert fs.info(f"{new_bucket}/a.txt")["ContentType"] == "text/plain"
            assert callback.value == callback.size * 2 == 2 * len(objects)
            assert callback.sizes == {str(tmp_path / name): size for name, size in sizes.items()}


class _Recorded(Callback):
    """Notes what the callback of each file learns."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sizes: dict[str, int] = {}

    def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
        sizes = self.sizes

        class Child(Callback):
            def call(self, *_: Any, **__: Any) -> None:
                if self.value == self.size:
                    sizes[path_1] = self.value

        return Child()


def test_files_that_vanish_or_grow(fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """A file that is gone is an error that names it; one that has grown meanwhile is sent as it is then."""
    files = [tmp_path / str(number) for number in range(9)]
    for each in files:
        each.write_bytes(b"abc")
    targets = [f"{bucket}/{each.name}" for each in files]

    class Growing(Callback):
        def set_size(self, size: int) -> None:
            """Called before the files are opened."""
            files[5].write_bytes(bytes(9 * 2**20))
            files[6].unlink(missing_ok=True)

    with pytest.raises(FileNotFoundError, match=str(files[6])):
        fs.put(list(map(str, files)), targets, callback=Growing(), batch_size=1)
    assert not fs.exists(targets[6])
    assert fs.info(targets[5])["size"] == 9 * 2**20


def test_writes_that_are_left(server: LocalS3, bucket: str) -> None:
    """Once a call that makes many objects has ended by a time limit, it makes no more of them."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(200)}
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server)
        fs.pipe(dict(list(objects.items())[:5]))
        proxy.faults = [Fault("PUT", skip=5, times=9999, delay=0.2)]
        with pytest.raises(fsspec.FSTimeoutError):
            fs.pipe(objects, timeout=0.5)
        proxy.faults = []
        assert fs.cat(list(objects)[:5]) == dict(list(objects.items())[:5])
        assert len(proxy.made("PUT")) < len(objects)


def test_replaced_while_its_ranges_are_read(server: LocalS3, bucket: str) -> None:
    """The ranges of one object are of one state of it, also where those of many objects are read."""
    paths = [f"{bucket}/{number}" for number in range(5)]
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server)
        fs.pipe(dict.fromkeys(paths, bytes(300_000)))
        direct = CSXFileSystem(**server.storage_options(), skip_instance_cache=True)
        second = lambda made: made.path.endswith("/3") and "200000" in str(made.headers)  # noqa: E731
        replace = lambda: direct.pipe_file(paths[3], b"1" * 300_000)  # noqa: E731
        proxy.faults = [Fault("GET", times=1, when=second, before=replace)]
        wanted = [path for path in paths for _ in range(2)]
        found = fs.cat_ranges(wanted, [0, 200_000] * 5, [10, 200_010] * 5)
        assert proxy.faults[0].times == 0
        assert found[6] == found[7]
        assert set(found) <= {bytes(10), b"1" * 10}


def test_ranges_of_many_objects(server: LocalS3, bucket: str) -> None:
    """Ranges of any kind come as they do one by one; small ones by a request each, and without a HEAD."""
    objects = {f"{bucket}/{number}": os.urandom(1000 + number) for number in range(8)}
    paths = list(objects)
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server)
        fs.pipe(objects)
        proxy.requests.clear()
        assert fs.cat_ranges(paths, 100, 200) == [data[100:200] for data in objects.values()]
        assert fs.cat_ranges(2 * paths, 100, [200] * 8 + [700] * 8) == [
            data[100:end] for end in (200, 700) for data in objects.values()
        ]
        assert len(proxy.made("HEAD")) == 0
        assert len(proxy.made("GET")) == 3 * 8
        for start, end in ((-50, None), (900, 5000), (990, 1005), (5000, 6000), (7, None), (0, None), (5, -5), (9, 3)):
            assert fs.cat_ranges(paths, start, end) == [data[start:end] for data in objects.values()], (start, end)
        spans = [(0, 10), (5, 600), (-3, None), (990, 2000), (8, 8)]
        found = fs.cat_ranges([path for path in paths for _ in spans], *map(list, zip(*(spans * 8), strict=True)))
        assert found == [data[start:end] for data in objects.values() for start, end in spans]
        found = fs.cat_ranges([*paths, f"{bucket}/missing", f"{bucket}/missing"], 1, 9)
        assert all(isinstance(each, FileNotFoundError) for each in found[-2:])
        assert found[:-2] == [data[1:9] for data in objects.values()]
        with pytest.raises(FileNotFoundError, match="missing"):
            fs.cat_ranges([*paths, f"{bucket}/missing"], 1, 9, on_error="raise")


@pytest.mark.slow
def test_writes_that_fail(server: LocalS3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that cannot be made is an error as it is alone; no redirect is followed."""
    monkeypatch.setattr("botocore.retryhandler.random.random", lambda: 0.01)
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(9)}
    elsewhere = {"Location": f"{server.endpoint_url}/{bucket}/elsewhere"}
    with fault_proxy(server.endpoint_url) as proxy:
        fs = through(proxy, server, config_kwargs={"retries": {"total_max_attempts": 2}})
        for fault, message, unclear, requests in (
            ({"answer": (307, elsewhere, b"")}, "not followed", False, 2),
            ({"answer": error_answer(403, "AccessDenied")}, "/7", False, 2),
            ({"answer": error_answer(503, "SlowDown")}, "/7", False, None),
            ({"cut_down": 0}, "/7", True, None),
        ):
            proxy.requests.clear()
            proxy.faults = [Fault("PUT", times=99, when=lambda made: made.path.endswith("/7"), **fault)]
            with pytest.raises(OSError, match=message) as caught:
                fs.pipe(objects)
            assert getattr(caught.value, "maybe_applied", False) is unclear
            assert requests in (None, sum(made.path.endswith("/7") for made in proxy.made("PUT")))
        proxy.faults = []
        assert not fs.exists(f"{bucket}/elsewhere")
        assert fs.cat(list(objects), on_error="omit").items() <= objects.items()
