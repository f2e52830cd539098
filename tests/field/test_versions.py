"""A version in a path is read and deleted, and never written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import recorded_requests
from stores import Store

from fsspec_csx.s3.filesystem import CSXFileSystem


@pytest.fixture
def versions(store: Store) -> dict[bytes, str]:
    """The versions of the object k, by what they hold."""
    store.make_versioned()
    return {body: store.put("k", body) for body in (b"old", b"former", b"current")}


def left(store: Store) -> set[str]:
    """The versions that the bucket has."""
    listed = store.client.list_object_versions(Bucket=store.bucket)
    return {each["VersionId"] for each in listed.get("Versions", [])}


def markers(store: Store) -> list[Any]:
    """The delete markers that the bucket has."""
    found: list[Any] = store.client.list_object_versions(Bucket=store.bucket).get("DeleteMarkers", [])
    return found


@pytest.mark.parametrize("way", ["rm", "rm_file", "rm of a list", "rm of a URL", "rm, recursive", "delete"])
def test_deleting_a_version(store: Store, versions: dict[bytes, str], way: str) -> None:
    """A named version alone is deleted."""
    fs = store.filesystem(version_aware=True)
    path = f"{store.path('k')}?versionId={versions[b'old']}"
    {
        "rm": lambda: fs.rm(path),
        "rm_file": lambda: fs.rm_file(path),
        "rm of a list": lambda: fs.rm([path]),
        "rm of a URL": lambda: fs.rm(f"s3://{path}"),
        "rm, recursive": lambda: fs.rm(path, recursive=True),
        "delete": lambda: fs.delete(path),
    }[way]()
    assert left(store) == {versions[b"former"], versions[b"current"]}
    assert not markers(store)
    assert store.contents() == {"k": b"current"}


def test_deleting_many_versions(store: Store, versions: dict[bytes, str]) -> None:
    """Versions that a listing gives are deleted by one request, and leave the others."""
    fs = store.filesystem(version_aware=True)
    old = [f"{store.path('k')}?versionId={versions[body]}" for body in (b"old", b"former")]
    fs.rm(old)
    assert left(store) == {versions[b"current"]}
    assert not markers(store)


READS: dict[str, Callable[[CSXFileSystem, str], bytes]] = {
    "cat": lambda fs, path: bytes(fs.cat(path)),
    "cat_file": lambda fs, path: bytes(fs.cat_file(path)),
    "cat_file from the end": lambda fs, path: b"ol" + fs.cat_file(path, start=-1),
    "cat_ranges": lambda fs, path: b"".join(fs.cat_ranges([path] * 2, [0, 1], [1, 3])),
    "open": lambda fs, path: fs.open(path).read(),  # type: ignore[no-any-return]
    "head": lambda fs, path: fs.head(path, 3),  # type: ignore[no-any-return]
    "tail": lambda fs, path: fs.tail(path, 3),  # type: ignore[no-any-return]
}


def test_reading_a_version(store: Store, versions: dict[bytes, str], tmp_path: Path) -> None:
    """Every read of a named version is of that one."""
    fs = store.filesystem(version_aware=True)
    path = f"{store.path('k')}?versionId={versions[b'old']}"
    for way, call in READS.items():
        assert call(fs, path) == b"old", way
    fs.get(path, str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == b"old"
    fs.get(f"s3://{path}", f"{tmp_path}/folder/")
    assert (tmp_path / "folder" / "k").read_bytes() == b"old"
    assert (fs.info(path)["size"], fs.info(path)["VersionId"]) == (3, versions[b"old"])
    assert (fs.exists(path), fs.isfile(path), fs.isdir(path)) == (True, True, False)
    for call in (fs.glob, fs.find, fs.ls, fs.expand_path, lambda path: fs.expand_path(path, recursive=True)):
        (listed,) = call(path)
        assert fs.cat_file(listed if isinstance(listed, str) else listed["name"]) == b"old"
    assert fs.cat(path, recursive=True) == b"old"
    fs.cp(path, store.path("copy"))
    fs.cp(path, store.path("folder/"))
    assert store.contents() == {"k": b"current", "copy": b"old", "folder/k": b"old"}
    fs.mv(path, store.path("moved"))
    assert store.contents() == {"k": b"current", "copy": b"old", "folder/k": b"old", "moved": b"old"}
    assert versions[b"old"] not in left(store)


def writes(fs: CSXFileSystem, path: str, file: str) -> dict[str, Callable[[], object]]:
    """Every way to write to a path."""
    source = f"{path.partition('?')[0]}"

    async def open_async() -> None:
        await fs.open_async(path, "wb")

    return {
        "pipe": lambda: fs.pipe(path, b"X"),
        "pipe of many": lambda: fs.pipe({f"{source}-other": b"X", path: b"X"}),
        "pipe_file": lambda: fs.pipe_file(path, b"X"),
        "write_bytes": lambda: fs.write_bytes(path, b"X"),
        "write_text": lambda: fs.write_text(path, "X"),
        "put": lambda: fs.put(file, path),
        "put of lists": lambda: fs.put([file, file], [f"{source}-other", path]),
        "put_file": lambda: fs.put_file(file, path),
        "touch": lambda: fs.touch(path),
        "cp": lambda: fs.cp(source, path),
        "cp of lists": lambda: fs.cp([source, source], [f"{source}-other", path]),
        "cp_file": lambda: fs.cp_file(source, path),
        "mv": lambda: fs.mv(source, path),
        "mv of lists": lambda: fs.mv([source], [path]),
        "open": lambda: fs.open(path, "wb"),
        "append": lambda: fs.open(path, "ab"),
        "exclusive": lambda: fs.open(path, "xb"),
        "text": lambda: fs.open(path, "w"),
        "open_async": lambda: asyncio.run(open_async()),
        "merge": lambda: fs.merge(path, [source]),
        "setxattr": lambda: fs.setxattr(path, note="X"),
    }


def test_writing_to_a_version(store: Store, versions: dict[bytes, str], tmp_path: Path) -> None:
    """It is refused before anything is sent, whatever writes."""
    fs = store.filesystem(version_aware=True)
    (tmp_path / "file").write_bytes(b"X")
    path = f"{store.path('k')}?versionId={versions[b'old']}"
    fs.info(path)
    for way, call in writes(fs, path, str(tmp_path / "file")).items():
        with recorded_requests() as operations, pytest.raises(ValueError, match="version"):
            call()
        assert not operations, way
    assert left(store) == set(versions.values())
    assert store.contents() == {"k": b"current"}


def test_missing_version(store: Store, versions: dict[bytes, str]) -> None:
    """The error names the version, as the object exists."""
    fs, path = store.filesystem(version_aware=True), f"{store.path('k')}?versionId={versions[b'old']}"
    fs.rm(path)
    for read in (fs.cat_file, fs.info, fs.open):
        with pytest.raises(FileNotFoundError, match=f"k.versionId={versions[b'old']}"):
            read(path)


def test_finding_versions(store: Store) -> None:
    """A search lists each version, however deep it goes; neither it nor a listing of versions is cached."""
    store.make_versioned()
    fs = store.filesystem(version_aware=True)
    made = {name: {store.put(name, body) for body in (b"old", b"new")} for name in ("f/k", "f/g/k", "f/g/h/k")}
    named = {name: {store.path(f"{name}?versionId={each}") for each in made[name]} for name in made}
    for depth, names in ((1, ["f/k"]), (2, ["f/k", "f/g/k"]), (3, [*made]), (None, [*made])):
        assert {*fs.find(store.path("f"), maxdepth=depth, versions=True)} == set.union(*(named[each] for each in names))
        assert fs.find(store.path("f"), maxdepth=depth) == sorted(map(store.path, names))
    assert {*fs.ls(store.path("f"), versions=True, detail=False)} == named["f/k"] | {store.path("f/g")}
    assert fs.ls(store.path("f"), detail=False) == [store.path("f/g"), store.path("f/k")]


def test_versions_of_one_object(store: Store, versions: dict[bytes, str]) -> None:
    """object_version_info is of the object alone, and not of those whose names begin with its name."""
    fs = store.filesystem(version_aware=True)
    for name in ("k2", "k/below", "j"):
        store.put(name, b"other")
    for path in (store.path("k"), f"s3://{store.path('k')}", f"{store.path('k')}?versionId={versions[b'old']}"):
        found = fs.object_version_info(path)
        assert {each["VersionId"] for each in found} == set(versions.values())
        assert {each["Key"] for each in found} == {"k"}
    with pytest.raises(ValueError, match="version_aware=True"):
        store.fs.object_version_info(store.path("k"))


def test_filesystem_that_knows_no_versions(moto_store: Store) -> None:
    """There ``?versionId=`` is a part of the name, as every other character is."""
    fs = moto_store.fs
    moto_store.fill({"k": b"1"})
    path = f"{moto_store.path('k')}?versionId=x"
    assert not fs.exists(path)
    with pytest.raises(FileNotFoundError):
        fs.rm(path)
    fs.pipe_file(path, b"2")
    assert moto_store.contents() == {"k": b"1", "k?versionId=x": b"2"}
    fs.rm(path)
    assert moto_store.contents() == {"k": b"1"}
