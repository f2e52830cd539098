"""Transactions, and files of fsspec's caches: nothing is published before the end, or after a failure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from conftest import recorded_requests
from fsspec.callbacks import Callback

from fsspec_csx.errors import DiscardedFileWarning
from fsspec_csx.s3.filesystem import CSXFileSystem

BLOCK = 5 * 2**20
DATA = os.urandom(2 * BLOCK + 17)
Way = Callable[[CSXFileSystem, str, Path], object]
WAYS: dict[str, Way] = {
    "pipe_file": lambda fs, path, local: fs.pipe_file(path, DATA),
    "pipe": lambda fs, path, local: fs.pipe({path: DATA}),
    "chunks": lambda fs, path, local: fs.pipe_file(path, memoryview(DATA), chunksize=BLOCK),
    "put_file": lambda fs, path, local: fs.put_file(str(local), path),
    "put": lambda fs, path, local: fs.put([str(local)], [path]),
    "put of a folder": lambda fs, path, local: fs.put(f"{local.parent}/", path.rsplit("/", 1)[0], recursive=True),
    "upload": lambda fs, path, local: fs.upload(str(local), path),
    "write_bytes": lambda fs, path, local: fs.write_bytes(path, DATA),
}


@pytest.fixture
def path(fs: CSXFileSystem, bucket: str) -> str:
    """An object that holds b'old'."""
    fs.pipe_file(f"{bucket}/folder/object", b"old")
    return f"{bucket}/folder/object"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A local file of the name of the object."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "object").write_bytes(DATA)
    return tmp_path / "source" / "object"


def test_transaction_in_a_transaction(fs: CSXFileSystem, path: str) -> None:
    """It is refused, as it would lose what the outer one has written; the outer one can continue."""
    with fs.transaction:
        fs.pipe_file(path, b"new")
        with pytest.raises(RuntimeError, match="in a transaction"), fs.transaction:
            pass
        fs.pipe_file(f"{path}2", b"more")
        assert fs.cat_file(path) == b"old"
    assert (fs.cat_file(path), fs.cat_file(f"{path}2")) == (b"new", b"more")
    with fs.transaction:
        fs.pipe_file(path, b"newer")
    assert fs.cat_file(path) == b"newer"


def test_start_transaction(fs: CSXFileSystem, path: str) -> None:
    """It is refused in a transaction too, and may be used in a with statement."""
    fs.start_transaction()
    fs.pipe_file(path, b"new")
    with pytest.raises(RuntimeError, match="in a transaction"):
        fs.start_transaction()
    with pytest.raises(RuntimeError, match="in a transaction"), fs.transaction:
        pass
    fs.end_transaction()
    assert fs.cat_file(path) == b"new"
    with fs.start_transaction():
        with pytest.raises(RuntimeError, match="in a transaction"):
            fs.start_transaction()
        fs.pipe_file(path, b"newer")
        assert fs.cat_file(path) == b"new"
    assert fs.cat_file(path) == b"newer"


@pytest.mark.parametrize("way", WAYS)
def test_waits_for_the_end(fs: CSXFileSystem, path: str, local: Path, way: str) -> None:
    """What is written in a transaction is published at its end, from the memory and the file as they were."""
    with fs.transaction:
        WAYS[way](fs, path, local)
        local.unlink()
        assert fs.cat_file(path) == b"old"
    assert fs.cat_file(path) == DATA
    assert fs.list_multipart_uploads(path.split("/")[0]) == []


@pytest.mark.parametrize("way", WAYS)
def test_rolled_back(fs: CSXFileSystem, path: str, local: Path, way: str) -> None:
    """A transaction that an exception leaves publishes nothing, and leaves no upload."""
    with pytest.raises(ValueError, match="stop"), fs.transaction:
        WAYS[way](fs, path, local)
        raise ValueError("stop")
    assert fs.cat_file(path) == b"old"
    assert fs.list_multipart_uploads(path.split("/")[0]) == []


def test_touch(fs: CSXFileSystem, path: str) -> None:
    """An empty object waits too, and an object that exists is refused where it must not be replaced."""
    with fs.transaction:
        fs.touch(path)
        fs.touch(f"{path}-new", truncate=False)
        with pytest.raises(ValueError, match=r"exist"):
            fs.touch(path, truncate=False)
        assert fs.cat_file(path) == b"old"
        assert not fs.exists(f"{path}-new")
    assert fs.cat_file(path) == fs.cat_file(f"{path}-new") == b""


def test_options(fs: CSXFileSystem, path: str, tmp_path: Path) -> None:
    """Parameters of the request, the content type of a name, mode create and callbacks work as without one."""
    (tmp_path / "x.json").write_bytes(DATA)
    callback = Callback()
    with pytest.raises(FileExistsError), fs.transaction:
        fs.pipe_file(path, b"new", mode="create")
    with fs.transaction:
        fs.pipe_file(f"{path}-new", b"new", mode="create", Metadata={"of": "a run"})
        fs.put_file(str(tmp_path / "x.json"), path, callback=callback)
    assert (callback.size, callback.value) == (len(DATA), len(DATA))
    assert fs.info(path)["ContentType"] == "application/json"
    assert fs.metadata(f"{path}-new") == {"of": "a run"}


def test_failed_commit(fs: CSXFileSystem, path: str) -> None:
    """An object that cannot be published is an error, and those that would have come after it are discarded."""
    with pytest.raises(FileExistsError), fs.transaction:
        fs.pipe_file(f"{path}-first", b"1")
        fs.pipe_file(f"{path}-new", b"2", mode="create")
        fs.pipe_file(path, b"3")
        fsspec.filesystem("s3", **fs.storage_options, skip_instance_cache=True).pipe_file(f"{path}-new", b"other")
    assert fs.cat_file(path) == b"old"
    assert fs.cat_file(f"{path}-new") == b"other"


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_file_that_was_not_closed(fs: CSXFileSystem, path: str, mode: str) -> None:
    """It may be incomplete, as an exception may have ended its writer: it is discarded with a warning."""

    def write_half() -> None:
        file = fs.open(path, mode)
        file.write("half" if mode == "w" else b"half")
        raise ValueError("stop")

    with pytest.warns(DiscardedFileWarning, match="not closed"), fs.transaction:
        fs.pipe_file(f"{path}-new", b"new")
        with contextlib.suppress(ValueError):
            write_half()
    assert fs.cat_file(path) == b"old"
    with pytest.warns(DiscardedFileWarning, match="not closed"), fs.transaction:
        file = fs.open(path, mode)
        file.write("half" if mode == "w" else b"half")  # a text wrapper keeps it
    assert fs.cat_file(path) == b"old"
    with pytest.raises(ValueError, match="closed"):
        file.write("more" if mode == "w" else b"more")
        file.flush()
    assert fs.cat_file(f"{path}-new") == b"new"


def test_requests(fs: CSXFileSystem, path: str) -> None:
    """A small object takes one request, as without a transaction."""
    with recorded_requests() as operations, fs.transaction:
        fs.pipe({path: b"new", f"{path}2": b"new"})
    assert operations == ["PutObject", "PutObject"]


# -- simplecache:: and filecache:: ------------------------------------------------------------------------------------


def opened(cache: str, fs: CSXFileSystem, path: str, tmp_path: Path, mode: str = "wb") -> Any:
    """A file of one of fsspec's caches."""
    options = {"s3": fs.storage_options, cache: {"cache_storage": str(tmp_path / "cache")}}
    return fsspec.open(f"{cache}::s3://{path}", mode, **options)


# The cache of blocks leaves its local files to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedRandom:ResourceWarning")
@pytest.mark.parametrize("mode", ["wb", "w"])
@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
def test_cached_file_left_by_an_exception(fs: CSXFileSystem, path: str, tmp_path: Path, cache: str, mode: str) -> None:
    """It is not published, and not kept in the cache; the next one is."""
    with pytest.raises(ValueError, match="stop"), opened(cache, fs, path, tmp_path, mode) as file:
        file.write("half" if mode == "w" else b"half")
        raise ValueError("stop")
    assert fs.cat_file(path) == b"old"
    with opened(cache, fs, path, tmp_path, mode.replace("w", "r")) as file:
        assert file.read() == ("old" if mode == "w" else b"old")
    fs.rm_file(path)
    with opened(cache, fs, path, tmp_path, mode) as file:
        file.write("new" if mode == "w" else b"new")
    assert fs.cat_file(path) == b"new"


@pytest.mark.parametrize("cache", ["simplecache", "filecache"])
def test_cached_file_closed_by_others(fs: CSXFileSystem, path: str, tmp_path: Path, cache: str) -> None:
    """An explicit close publishes, in a handler too; other managers do not, and an abandoned generator warns."""
    with pytest.raises(ValueError, match="stop"), contextlib.closing(opened(cache, fs, path, tmp_path).open()) as file:
        file.write(b"half")
        raise ValueError("stop")
    assert fs.cat_file(path) == b"old"

    def items() -> Any:
        with opened(cache, fs, path, tmp_path) as file:
            file.write(b"half")
            yield

    running = items()
    next(running)
    with pytest.warns(DiscardedFileWarning, match="GeneratorExit"):
        running.close()
    assert fs.cat_file(path) == b"old"
    file = opened(cache, fs, path, tmp_path).open()
    file.write(b"new")
    try:
        raise LookupError
    except LookupError:
        file.close()
    assert fs.cat_file(path) == b"new"
