"""Keys that are also prefixes, and the markers of folders that consoles create."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from stores import Store

COLLIDING = {"p": b"OBJECT", "p/file": b"F", "p/q": b"Q", "p/q/r": b"R", "p2": b"2"}
MARKED = {"d/": b"", "d/f": b"F", "d/s/": b"", "d/s/g": b"G", "d/empty/": b""}


def test_colliding_key(store: Store) -> None:
    """An object whose key is also a prefix is a file and a folder, in whichever order these are looked up."""
    store.fill(COLLIDING)
    fs, path = store.fs, store.path("p")
    for _ in range(2):
        assert fs.isfile(path)
        assert fs.isdir(path)
        assert (fs.info(path)["type"], fs.info(path)["size"]) == ("file", 6)
        assert fs.cat(path) == fs.cat_file(path) == b"OBJECT"
        assert fs.cat_file(path, start=-2) == fs.tail(path, 2) == b"CT"
        with fs.open(path) as file:
            assert file.read() == b"OBJECT"
        assert fs.ls(path) == [store.path(name) for name in ("p/file", "p/q")]
        assert fs.find(path) == [store.path(name) for name in ("p/file", "p/q", "p/q/r")]
        assert fs.find(store.bucket) == [store.path(name) for name in sorted(COLLIDING)]
        assert fs.du(store.bucket) == sum(len(body) for body in COLLIDING.values())
    with fs.open(path, "ab") as file:
        file.write(b" and more")
    assert store.contents() == {**COLLIDING, "p": b"OBJECT and more"}


def test_colliding_key_alone_and_with_all_below(store: Store, tmp_path: Path) -> None:
    """Without recursive=True what lies below is left; with it, both go along."""
    fs, path = store.filesystem(skip_instance_cache=True), store.path("p")
    fs.batch_size = 1  # SeaweedFS may lose p/q if it is copied while p/q/r is
    store.fill(COLLIDING)
    fs.get(path, str(tmp_path / "alone"))
    assert (tmp_path / "alone").read_bytes() == b"OBJECT"
    with pytest.raises(IsADirectoryError, match="object and a folder"):
        fs.get(path, str(tmp_path / "all"), recursive=True)
    assert not (tmp_path / "all").exists()
    fs.cp(path, store.path("copy"), recursive=True)
    copied = {key.replace("p", "copy", 1): body for key, body in COLLIDING.items() if key != "p2"}
    assert store.contents() == {**COLLIDING, **copied}
    fs.rm(path)
    left = {key: body for key, body in COLLIDING.items() if key != "p"}
    assert store.contents() == {**left, **copied}
    fs.rm(store.path("copy"), recursive=True)
    assert store.contents() == left
    store.put("p", b"OBJECT")
    fs.mv(path, store.path("moved"), recursive=True)
    moved = {key.replace("p", "moved", 1): body for key, body in COLLIDING.items() if key != "p2"}
    assert store.contents() == {**moved, "p2": b"2"}


def test_empty_object_of_a_folders_name(moto_store: Store, tmp_path: Path) -> None:
    """An empty object without a slash, which some tools make for a folder, is no obstacle to a download."""
    moto_store.fill({"d/e": b"", "d/e/f/g": b"G", "d/h": b""})
    moto_store.fs.get(moto_store.path("d/"), str(tmp_path / "all"), recursive=True)
    found = {each.relative_to(tmp_path / "all").as_posix(): each.is_file() for each in (tmp_path / "all").rglob("*")}
    assert found == {"e": False, "e/f": False, "e/f/g": True, "h": True}


def test_markers_are_no_files(moto_store: Store, tmp_path: Path) -> None:
    """A folder made in a console is a folder: it is in no listing of files, and goes where its folder goes."""
    store, fs, path = moto_store, moto_store.fs, moto_store.path
    store.fill(MARKED)
    for _ in range(2):  # the second from the cache
        assert fs.ls(path("d")) == fs.ls(path("d/")) == [path("d/empty"), path("d/f"), path("d/s")]
        assert {each["name"]: each["type"] for each in fs.ls(path("d"), detail=True)} == {
            path("d/empty"): "directory",
            path("d/f"): "file",
            path("d/s"): "directory",
        }
        assert list(fs.walk(path("d"))) == [
            (path("d"), ["empty", "s"], ["f"]),
            (path("d/empty"), [], []),
            (path("d/s"), [], ["g"]),
        ]
    for depth in (None, 3):
        assert fs.find(path("d"), maxdepth=depth) == [path("d/f"), path("d/s/g")]
        with_folders = [path(name) for name in ("d", "d/empty", "d/f", "d/s", "d/s/g")]
        assert fs.find(path("d"), maxdepth=depth, withdirs=True) == with_folders
    assert fs.glob(path("d/*")) == [path("d/empty"), path("d/f"), path("d/s")]
    assert fs.du(path("d"), total=False) == {path("d/f"): 1, path("d/s/g"): 1}
    assert fs.cat(path("d"), recursive=True) == {path("d/f"): b"F", path("d/s/g"): b"G"}
    assert fs.ls(path("d/empty")) == fs.find(path("d/empty")) == []
    for folder in ("d", "d/", "d/empty", "d/empty/"):
        assert fs.info(path(folder))["type"] == "directory"
        assert (fs.exists(path(folder)), fs.isdir(path(folder)), fs.isfile(path(folder))) == (True, True, False)
        with pytest.raises(IsADirectoryError):
            fs.rm(path(folder))
    fs.get(path("d"), str(tmp_path / "got"), recursive=True)
    names = {each.relative_to(tmp_path / "got").as_posix() for each in (tmp_path / "got").rglob("*")}
    assert names == {"empty", "f", "s", "s/g"}
    assert store.contents() == MARKED


def test_markers_go_with_their_folder(moto_store: Store) -> None:
    """They are copied, moved and deleted with it; rmdir deletes that of an empty folder only."""
    store, fs = moto_store, moto_store.fs
    store.fill(MARKED)
    fs.cp(store.path("d"), store.path("e"), recursive=True)
    copied = {key.replace("d/", "e/", 1): body for key, body in MARKED.items()}
    assert store.contents() == {**MARKED, **copied}
    fs.rm(store.path("d"), recursive=True)
    assert store.contents() == copied
    fs.mv(store.path("e"), store.path("d"), recursive=True)
    assert store.contents() == MARKED
    with pytest.raises(FileExistsError):
        fs.rmdir(store.path("d/s"))
    fs.rmdir(f"s3://{store.path('d/empty/')}")
    assert store.contents() == {key: body for key, body in MARKED.items() if key != "d/empty/"}


def test_data_under_a_name_with_a_slash(moto_store: Store) -> None:
    """An object that has bytes is a file, though its name ends with a slash."""
    store, fs, path = moto_store, moto_store.fs, moto_store.path("d/")
    store.fill({"d/": b"data", "d/f": b"F"})
    assert fs.find(store.path("d")) == [path, store.path("d/f")]
    assert path in fs.ls(store.path("d"))
    assert fs.cat(path) == fs.cat_file(path) == b"data"
    assert fs.info(path)["size"] == 4
    assert fs.du(store.path("d")) == 5
    fs.rm(path)
    assert store.contents() == {"d/f": b"F"}


@pytest.mark.slow
def test_pyarrow_reads_a_folder_with_markers(moto_store: Store) -> None:
    """pyarrow reads a data set from a folder that was made in a console."""
    table = pyarrow.table({"a": [1, 2, 3]})
    moto_store.put("data/")
    moto_store.put("data/part=1/")
    with moto_store.fs.open(moto_store.path("data/part=1/file.parquet"), "wb") as file:
        pyarrow.parquet.write_table(table, file)
    handler = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(moto_store.fs))
    for _ in range(2):
        found = pyarrow.dataset.dataset(moto_store.path("data"), filesystem=handler, format="parquet")
        assert found.to_table().column("a").to_pylist() == [1, 2, 3]
        read = pyarrow.parquet.read_table(moto_store.path("data"), filesystem=moto_store.fs)
        assert read.column("a").to_pylist() == [1, 2, 3]
        moto_store.fs.ls(moto_store.path("data"))


ODD = {"a//b": b"1", "a/b": b"2", "//c": b"3", "c": b"4", "a/./d": b"5", "a/../e": b"6", "e": b"7"}


def test_odd_keys(moto_store: Store, tmp_path: Path) -> None:
    """Empty segments and dots are part of a key, and no other object is taken for it."""
    store, fs = moto_store, moto_store.fs
    store.fill(ODD)
    assert fs.find(store.bucket) == sorted(store.path(key) for key in ODD)
    for key, body in ODD.items():
        assert fs.cat_file(store.path(key)) == body
        assert fs.isfile(store.path(key))
    assert fs.find(store.path("a"), maxdepth=3) == sorted(store.path(key) for key in ODD if key.startswith("a/"))
    with pytest.raises(ValueError, match="leads out"):
        fs.get(store.path("a"), str(tmp_path / "got"), recursive=True)
    fs.rm(f"{store.bucket}///c")
    fs.rm(store.path("a"), recursive=True)
    assert store.contents() == {"c": b"4", "e": b"7"}
    fs.pipe_file(f"{store.bucket}//folder/x", b"8")
    store.put("folder/x", b"9")
    fs.rm(f"{store.bucket}//folder", recursive=True)
    assert store.contents() == {"c": b"4", "e": b"7", "folder/x": b"9"}


def test_two_objects_for_one_local_file(moto_store: Store, tmp_path: Path) -> None:
    """Keys that one local file would stand for are refused before anything is fetched."""
    moto_store.fill({"a//b": b"1", "a/b": b"2"})
    with pytest.raises(ValueError, match="both become"):
        moto_store.fs.get(moto_store.path("a"), str(tmp_path / "got"), recursive=True)
    assert not (tmp_path / "got").exists()
