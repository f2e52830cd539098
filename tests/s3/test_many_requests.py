"""Objects that one call reads or makes: each of its own name, whichever request the others are signed from."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
from fsspec.callbacks import Callback
from proxy import Fault, error_answer, fault_proxy, through

from fsspec_csx.s3.consistent_read import BytesBuffer
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST
from fsspec_csx.testing import LocalS3

# The name of the first ends that of another, from which the rest is learned anew.
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


def test_names_in_headers(server: LocalS3, bucket: str) -> None:
    """Headers that are not ASCII are sent as they were signed: nothing is refused and sent again."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(5)}
    for name in ("Grüße", "日本"):
        with fault_proxy(server.endpoint_url) as proxy:
            fs = through(proxy, server)
            fs.pipe(objects, ContentDisposition=f'attachment; filename="{name}"')
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
    """A subclass that reads its objects in another way is asked for each of them."""

    class Reversing(CSXFileSystem):
        async def _cat_file(self, path: str, *args: Any, **kwargs: Any) -> bytes:
            return (await super()._cat_file(path, *args, **kwargs))[::-1]

    objects = {f"{bucket}/{number}": b"abc%d" % number for number in range(9)}
    fs.pipe(objects)
    mine = Reversing(**fs.storage_options, skip_instance_cache=True)
    assert mine.cat(list(objects)) == {name: data[::-1] for name, data in objects.items()}


def test_pools_that_end(fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of connections that urllib3 ends, since there are many hosts, fails no call."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(9)}
    pool_to = compat.pool_to

    def ended(session: Any, url: str) -> Any:
        pool = pool_to(session, url)
        session._manager.clear()
        pool.close()  # as urllib3 1.26 does with pools that it drops
        return pool

    monkeypatch.setattr(compat, "pool_to", ended)
    fs.pipe(objects)
    assert fs.cat(list(objects)) == objects


def test_first_use(fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """A filesystem that was not connected before connects."""
    objects = {f"{bucket}/{number}": b"%d" % number for number in range(9)}
    fs.pipe(objects)
    mine = CSXFileSystem(**fs.storage_options, skip_instance_cache=True)
    mine.get(list(objects), [str(tmp_path / name.rpartition("/")[2]) for name in objects])
    assert all((tmp_path / name.rpartition("/")[2]).read_bytes() == data for name, data in objects.items())
