"""Whether an object exists, its size and its content never come from a cached listing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import recorded_requests
from fsspec.asyn import sync
from listener import Answer, Heard, listening
from stores import Store

from fsspec_csx.s3.filesystem import CSXFileSystem

WHEN = "<LastModified>2026-01-01T00:00:00Z</LastModified>"


def read(store: Store, path: str) -> bytes:
    """The bytes of a file that is opened."""
    with store.fs.open(path) as file:
        return bytes(file.read())


# Lookups and reads of an object that holds b"0123456789".
QUESTIONS: dict[str, Callable[[Store, str], bool]] = {
    "exists": lambda store, path: bool(store.fs.exists(path)),
    "isfile": lambda store, path: bool(store.fs.isfile(path)),
    "info": lambda store, path: store.fs.info(path)["size"] == 10,
    "size": lambda store, path: store.fs.size(path) == 10,
    "sizes": lambda store, path: store.fs.sizes([path]) == [10],
    "open": lambda store, path: read(store, path) == b"0123456789",
    "tail": lambda store, path: store.fs.tail(path, 2) == b"89",
    "cat": lambda store, path: store.fs.cat(path) == b"0123456789",
    "from 1": lambda store, path: store.fs.cat_file(path, start=1) == b"123456789",
    "the last 2": lambda store, path: store.fs.cat_file(path, start=-2) == b"89",
    "to the last 2": lambda store, path: store.fs.cat_file(path, end=-2) == b"01234567",
    "more than there is": lambda store, path: store.fs.cat_file(path, start=0, end=2**24) == b"0123456789",
    "ranges": lambda store, path: store.fs.cat_ranges([path] * 2, [0, 1], [1, 3]) == [b"0", b"12"],
    "ls": lambda store, path: store.fs.ls(path) == [path],
    "checksum": lambda store, path: store.fs.checksum(path) == int(head(store, path)["ETag"].strip('"'), 16),
    "modified": lambda store, path: store.fs.modified(path) == head(store, path)["LastModified"],
}


def head(store: Store, path: str) -> Any:
    """What another program sees of an object."""
    return store.client.head_object(Bucket=store.bucket, Key=path.partition("/")[2])


def test_new_object(store: Store) -> None:
    """An object that another program made after a listing is there."""
    store.fill({"d/old": b"old"})
    for number, (name, holds) in enumerate(QUESTIONS.items()):
        store.fs.ls(store.path("d"), refresh=True)
        store.put(f"d/new-{number}", b"0123456789")
        assert holds(store, store.path(f"d/new-{number}")), name


def test_listing_during_a_deletion() -> None:
    """An object that was deleted is not listed again, though another thread has listed it before the answer came."""
    objects = "".join(f"<Contents><Key>d/{name}</Key><Size>1</Size>{WHEN}</Contents>" for name in "ab")
    listed = f"<ListBucketResult><Name>bucket</Name>{objects}</ListBucketResult>".encode()

    def answer(heard: Heard) -> Answer:
        if heard.method == "GET":
            return 200, {}, listed
        fs.ls("bucket/d")
        return (204, {}, b"") if heard.method == "DELETE" else (200, {}, b"<DeleteResult></DeleteResult>")

    with listening() as server:
        fs = CSXFileSystem(key="key", secret="a-secret", endpoint_url=server.url, skip_instance_cache=True)
        server.answer = answer
        for delete, paths in ((fs._rm_file, "bucket/d/a"), (fs._bulk_delete, ["bucket/d/a", "bucket/d/b"])):
            sync(fs.loop, delete, paths)
            server.heard.clear()
            fs.ls("bucket/d")
            assert len(server.heard) == 1


def test_deletion_during_a_listing() -> None:
    """A listing is not kept if another thread has deleted an object while it came."""
    names = ["a", "b"]

    def answer(heard: Heard) -> Answer:
        if heard.method == "DELETE":
            return 204, {}, b""
        objects = "".join(f"<Contents><Key>d/{name}</Key><Size>1</Size>{WHEN}</Contents>" for name in names)
        if len(names) == 2:
            names.remove("a")
            sync(fs.loop, fs._rm_file, "bucket/d/a")
        return 200, {}, f"<ListBucketResult><Name>bucket</Name>{objects}</ListBucketResult>".encode()

    with listening(answer) as server:
        fs = CSXFileSystem(key="key", secret="a-secret", endpoint_url=server.url, skip_instance_cache=True)
        assert fs.ls("bucket/d") == ["bucket/d/a", "bucket/d/b"]
        for _ in range(2):
            assert fs.ls("bucket/d") == ["bucket/d/b"]
        assert len(server.heard) == 3


@pytest.mark.slow
def test_replaced_object(store: Store) -> None:
    """An object that another program replaced after a listing is the new one, and can be opened again."""
    path = store.path("d/object")
    for name, holds in QUESTIONS.items():
        store.fill({"d/object": b"longer than the other"})
        store.fs.ls(store.path("d"), refresh=True)
        former = store.fs.ukey(path)
        store.put("d/object", b"0123456789")
        assert holds(store, path), name
        assert store.fs.ukey(path) != former


def test_deleted_object(store: Store) -> None:
    """An object that another program deleted after a listing is not there."""
    path = store.path("d/object")
    store.fill({"d/object": b"data", "d/other": b"data"})
    store.fs.ls(store.path("d"))
    store.client.delete_object(Bucket=store.bucket, Key="d/object")
    assert not store.fs.exists(path)
    assert not store.fs.isfile(path)
    for call in (store.fs.info, store.fs.size, store.fs.cat, store.fs.open, store.fs.ls, store.fs.rm):
        with pytest.raises(FileNotFoundError):
            call(path)


def test_append_after_a_listing(store: Store) -> None:
    """Append adds to what another program made meanwhile."""
    store.fill({"d/other": b""})
    store.fs.ls(store.path("d"))
    store.put("d/log", b"precious\n")
    with store.fs.open(store.path("d/log"), "ab") as log:
        log.write(b"more\n")
    assert store.contents()["d/log"] == b"precious\nmore\n"


@pytest.mark.parametrize("call", ["cp", "mv", "get", "rm"])
def test_folders_and_patterns_after_a_listing(store: Store, tmp_path: Any, call: str) -> None:
    """What is done to a folder, or to what a pattern matches, is done to what another program added too."""
    for number, path in enumerate(("d", "d/*")):
        store.fill({"d/one": b"1"})
        store.fs.find(store.path("d"), maxdepth=1)
        store.fs.ls(store.path("d"), refresh=True)
        store.put("d/two", b"2")
        target = f"{tmp_path}/{number}" if call == "get" else store.path("e")
        arguments = [store.path(path)] if call == "rm" else [store.path(path), target]
        getattr(store.fs, call)(*arguments, recursive=True)
        left = {} if call in ("mv", "rm") else {"d/one": b"1", "d/two": b"2"}
        made = {"e/one": b"1", "e/two": b"2"} if call in ("cp", "mv") else {}
        assert store.contents() == {**left, **made}
        if call == "get":
            assert sorted(each.name for each in (tmp_path / str(number)).iterdir()) == ["one", "two"]


def test_listings_are_cached(moto_store: Store) -> None:
    """A second listing costs nothing; a question about an object costs one request, as does opening it."""
    fs = moto_store.fs
    moto_store.fill({"d/a": b"1", "d/s/b": b"2"})
    fs.ls(moto_store.path("d"))

    def requests(call: Callable[[], object]) -> list[str]:
        with recorded_requests() as operations:
            call()
        return list(operations)

    assert requests(lambda: fs.ls(moto_store.path("d"))) == []
    assert requests(lambda: fs.info(moto_store.path("d/a"))) == ["HeadObject"]
    assert requests(lambda: fs.exists(moto_store.path("d/a"))) == ["HeadObject"]
    assert requests(lambda: read(moto_store, moto_store.path("d/a"))) == ["HeadObject", "GetObject"]
    assert requests(lambda: fs.isdir(moto_store.path("d"))) == ["ListObjectsV2"]
    assert requests(lambda: fs.du(moto_store.path("d"))) == ["ListObjectsV2"]
