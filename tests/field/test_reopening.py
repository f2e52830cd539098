"""A file reads the object in its state when the file was opened, through the chosen cache."""

from __future__ import annotations

import pickle

import fsspec
import fsspec.caching
import pytest
from conftest import recorded_requests

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.readahead import ReadAhead
from fsspec_csx.testing import LocalS3

CACHES = {
    "readahead": fsspec.caching.ReadAheadCache,
    "none": fsspec.caching.BaseCache,
    "bytes": fsspec.caching.BytesCache,
    "blockcache": fsspec.caching.BlockCache,
    "background": fsspec.caching.BackgroundBlockCache,
    "all": fsspec.caching.AllBytes,
    "first": fsspec.caching.FirstChunkCache,
    "mmap": fsspec.caching.MMapCache,
    "parts": fsspec.caching.KnownPartsOfAFile,
}


@pytest.fixture
def other(fs: CSXFileSystem) -> CSXFileSystem:
    """Another program, which the filesystem under test knows nothing of."""
    return fs


@pytest.fixture
def listing(server: LocalS3) -> CSXFileSystem:
    """A filesystem that keeps listings, as by default."""
    made = fsspec.filesystem("s3", **server.storage_options(), skip_instance_cache=True)
    assert isinstance(made, CSXFileSystem)
    return made


def test_replaced_after_a_listing(listing: CSXFileSystem, other: CSXFileSystem, bucket: str) -> None:
    """An object that was replaced since it was listed is opened as it is now, as often as it is replaced."""
    other.pipe_file(f"{bucket}/folder/object", b"first")
    listing.ls(f"{bucket}/folder", detail=True)
    for data in (b"another", b"", b"the third"):
        other.pipe_file(f"{bucket}/folder/object", data)
        with listing.open(f"{bucket}/folder/object") as file:
            assert file.size == len(data)
            assert file.info()["size"] == len(data)
            assert file.read() == data


def test_new_after_a_listing(listing: CSXFileSystem, other: CSXFileSystem, bucket: str) -> None:
    """An object that no listing had is opened; one that is gone is not."""
    other.pipe_file(f"{bucket}/folder/one", b"1")
    listing.ls(f"{bucket}/folder")
    other.pipe_file(f"{bucket}/folder/two", b"2")
    other.rm_file(f"{bucket}/folder/one")
    with listing.open(f"{bucket}/folder/two") as file:
        assert file.read() == b"2"
    with pytest.raises(FileNotFoundError):
        listing.open(f"{bucket}/folder/one")


@pytest.mark.parametrize("listed", [False, True])
def test_requests(listing: CSXFileSystem, bucket: str, listed: bool) -> None:
    """A small object takes one question and one read, and no question if its size is given."""
    listing.pipe_file(f"{bucket}/folder/object", b"data")
    if listed:
        listing.ls(f"{bucket}/folder")
    with recorded_requests() as operations:
        with listing.open(f"{bucket}/folder/object") as file:
            assert file.read() == b"data"
        assert operations == ["HeadObject", "GetObject"]
        with listing.open(f"{bucket}/folder/object", size=4) as file:
            assert file.read() == b"data"
    assert operations[2:] == ["GetObject"]


# MMapCache leaves its temporary file to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedRandom:ResourceWarning")
@pytest.mark.parametrize("cache", CACHES)
def test_named_cache(server: LocalS3, fs: CSXFileSystem, bucket: str, cache: str) -> None:
    """Each cache that fsspec has by a name is that one, named for a file or for all of a filesystem."""
    data = bytes(range(256)) * 100
    fs.pipe_file(f"{bucket}/object", data)
    options = {"data": {(0, 100): data[:100]}, "strict": False} if cache == "parts" else {}
    with fs.open(f"{bucket}/object", cache_type=cache, block_size=1000, cache_options=options) as file:
        assert type(file.cache) is CACHES[cache]
        assert file.read(10) == data[:10]
        if cache != "parts":  # it has what it was given
            assert file.read(5000) == data[10:5010]
        file.seek(30)
        assert file.read(20) == data[30:50]
        again = pickle.loads(pickle.dumps(file)) if cache != "parts" else file
        assert type(again.cache) is CACHES[cache]
    made = fsspec.filesystem("s3", **server.storage_options(), default_cache_type=cache)
    with made.open(f"{bucket}/object", cache_options=options) as file:
        assert type(file.cache) is CACHES[cache]


def test_default_cache(fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is the default, and survives a pickle; a configuration of fsspec names another."""
    fs.pipe_file(f"{bucket}/object", b"data")
    with fs.open(f"{bucket}/object") as file:
        assert isinstance(file.cache, ReadAhead)
        again = pickle.loads(pickle.dumps(file))
        assert isinstance(again.cache, ReadAhead)
        assert again.read() == b"data"
    monkeypatch.setitem(fsspec.config.conf, "s3", {"default_cache_type": "bytes"})
    made = fsspec.filesystem("s3", **fs.storage_options)
    assert type(made.open(f"{bucket}/object").cache) is fsspec.caching.BytesCache
