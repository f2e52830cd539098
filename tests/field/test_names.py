"""A name is a name: whatever characters it has, every method reads and changes that object, and no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import recorded_requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from proxy import Fault, error_answer, fault_proxy, through
from stores import Store

from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

# Names, each with others that it would stand for if it were a pattern, or that it is the beginning of.
NAMES: dict[str, list[str]] = {
    "t[1]f": ["t1f"],
    "a?": ["ab"],
    "a*": ["a", "abc"],
    "a[!b]": ["ac", "ab"],
    "[": ["[x"],
    "*": ["b", "c/d"],
    "**": ["b", "c/d"],
    "s/a?/x[0]": ["s/ab/x0", "s/ab/x[0]"],
    "p": ["p2", "p/below"],
    "p?": ["p?/below", "pq", "pq/below"],
    "a b": ["a"],
    "a#b": ["a"],
    "%41": ["A"],
    "a+b": ["a b"],
    "{x,y}": ["x", "y"],
    "~": [],
    "$HOME": [],
    "é": ["e"],
}
# Those that only some servers keep as they are.
ODD_NAMES: dict[str, list[str]] = {
    "a\\b": ["a/b"],
    "a//b": ["a/b"],
    "//a": ["a"],
    "a/./b": ["a/b"],
    "a/../b": ["b"],
    "a/": ["a/b", "b"],
    ".": ["b"],
}
BODY = b"the one that was named"
Model = dict[str, bytes]


def cases(store: Store) -> list[tuple[str, Model]]:
    """The names that the server keeps, and what shall be in the bucket."""
    names = {**NAMES, **(ODD_NAMES if store.keeps_all_keys else {})}
    return [(name, {name: BODY, **{each: each.encode() for each in others}}) for name, others in names.items()]


def read(store: Store, path: str) -> bytes:
    """The bytes of a file that is opened."""
    with store.fs.open(path) as file:
        return bytes(file.read())


def got(store: Store, path: Any, folder: Path, **kwargs: Any) -> bytes:
    """The bytes of the one file that ``get`` makes."""
    target = folder / "got"
    store.fs.get(path, str(target), **kwargs) if isinstance(path, str) else store.fs.get(path, [str(target)])
    body = target.read_bytes()
    target.unlink()
    return body


READS: dict[str, Callable[[Store, str, Path], bool]] = {
    "cat": lambda store, path, folder: store.fs.cat(path) == BODY,
    "cat of a URL": lambda store, path, folder: store.fs.cat(f"s3://{path}") == BODY,
    "cat of a list": lambda store, path, folder: store.fs.cat([path]) == {path: BODY},
    "cat_file": lambda store, path, folder: store.fs.cat_file(path) == BODY,
    "cat_file from the end": lambda store, path, folder: store.fs.cat_file(path, start=-5) == BODY[-5:],
    "cat_ranges": lambda store, path, folder: store.fs.cat_ranges([path] * 2, [0, 3], [3, 6]) == [b"the", b" on"],
    "open": lambda store, path, folder: read(store, path) == BODY,
    "head": lambda store, path, folder: store.fs.head(path, 3) == BODY[:3],
    "tail": lambda store, path, folder: store.fs.tail(path, 3) == BODY[-3:],
    "exists": lambda store, path, folder: bool(store.fs.exists(path)),
    "isfile": lambda store, path, folder: bool(store.fs.isfile(path)),
    "size": lambda store, path, folder: store.fs.size(path) == len(BODY),
    "info": lambda store, path, folder: store.fs.info(path)["name"] == path,
    "glob": lambda store, path, folder: store.fs.glob(path) == [path],
    "expand_path": lambda store, path, folder: store.fs.expand_path(path) == [path],
    "get": lambda store, path, folder: got(store, path, folder) == BODY,
    "get of a URL": lambda store, path, folder: got(store, f"s3://{path}", folder) == BODY,
    "get of a list": lambda store, path, folder: got(store, [path], folder) == BODY,
    "checksum": lambda store, path, folder: store.fs.checksum(path) is not None,
}


# fsspec drops a slash at the end of the name of a file, and no local file has one.
OF_FILES = ("open", "head", "tail", "expand_path", "get", "get of a URL", "get of a list")


def test_reads(store: Store, tmp_path: Path) -> None:
    """A read by a name is of the object of just that name."""
    for name, model in cases(store):
        store.fill(model)
        for way, call in READS.items():
            if name.endswith("/") and way in OF_FILES:
                continue
            assert call(store, store.path(name), tmp_path), (way, name)


def append(store: Store, name: str, model: Model, folder: Path) -> None:
    with store.fs.open(store.path(name), "ab") as file:
        file.write(b" and more")
    model[name] += b" and more"


def write(store: Store, name: str, model: Model, folder: Path) -> None:
    with store.fs.open(store.path(name), "wb") as file:
        file.write(b"new")
    model[name] = b"new"


def put(store: Store, name: str, model: Model, folder: Path) -> None:
    (folder / "sent[1]").write_bytes(b"sent")
    (folder / "sent1").write_bytes(b"neighbour")
    store.fs.put(str(folder / "sent[1]"), store.path(name))
    model[name] = b"sent"


def pipe(store: Store, name: str, model: Model, folder: Path) -> None:
    store.fs.pipe({f"s3://{store.path(name)}": b"sent", store.path("other"): b"1"})
    with store.fs.transaction:
        store.fs.pipe({store.path(name): b"sent again"})
    model |= {name: b"sent again", "other": b"1"}


def changes(way: str) -> Callable[[Store, str, Model, Path], None]:
    """What a method does to the objects of a bucket."""

    def call(store: Store, name: str, model: Model, folder: Path) -> None:
        fs, path = store.fs, store.path(name)
        if way.startswith("rm"):
            {
                "rm": lambda: fs.rm(path),
                "rm of a URL": lambda: fs.rm(f"s3://{path}"),
                "rm of a list": lambda: fs.rm([path]),
                "rm_file": lambda: fs.rm_file(path),
            }[way]()
            del model[name]
            return
        {
            "cp": lambda: fs.cp(path, store.path("new")),
            "cp of URLs": lambda: fs.cp(f"s3://{path}", f"s3://{store.path('new')}"),
            "cp of lists": lambda: fs.cp([path], [store.path("new")]),
            "cp_file": lambda: fs.cp_file(path, store.path("new")),
            "mv": lambda: fs.mv(path, store.path("new")),
            "mv of URLs": lambda: fs.mv(f"s3://{path}", f"s3://{store.path('new')}"),
            "mv of lists": lambda: fs.mv([path], [store.path("new")]),
            "rename": lambda: fs.rename(path, store.path("new")),
        }[way]()
        model["new"] = model[name]
        if way.startswith(("mv", "rename")):
            del model[name]

    return call


WRITES: dict[str, Callable[[Store, str, Model, Path], None]] = {
    "append": append,
    "write": write,
    "put": put,
    "pipe": pipe,
    **{
        way: changes(way)
        for way in (
            "rm",
            "rm of a URL",
            "rm of a list",
            "rm_file",
            "cp",
            "cp of URLs",
            "cp of lists",
            "cp_file",
            "mv",
            "mv of URLs",
            "mv of lists",
            "rename",
        )
    },
}


@pytest.mark.parametrize("way", WRITES)
def test_writes(store: Store, tmp_path: Path, way: str) -> None:
    """A change by a name is to the object of just that name."""
    for name, model in cases(store) if store.keeps_all_keys else cases(store)[:3]:
        if name.endswith("/") and way in ("put", "write", "append"):
            continue  # it means: into the folder, or an object without the slash
        if way == "put" and any(other.startswith(f"{name}/") for other in model):
            continue  # it goes into the folder
        if way.startswith(("cp", "mv", "rename")) and not store.can_copy(name, model):
            continue
        store.fill(model)
        WRITES[way](store, name, model, tmp_path)
        assert store.contents() == model, name


SEGMENT = st.text("ab*?[]!", min_size=1, max_size=4)
KEYS = st.lists(SEGMENT, min_size=1, max_size=2).map("/".join)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(keys=st.sets(KEYS, min_size=1, max_size=5), chosen=st.integers(0, 4), way=st.sampled_from(sorted(WRITES)))
def test_any_names(moto_store: Store, tmp_path: Path, keys: set[str], chosen: int, way: str) -> None:
    """The same for names of any characters that patterns are made of."""
    name = sorted(keys)[chosen % len(keys)]
    model = {key: key.encode() for key in keys}
    moto_store.fill(model)
    WRITES[way](moto_store, name, model, tmp_path)
    assert moto_store.contents() == model


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(keys=st.sets(KEYS, min_size=1, max_size=5), chosen=st.integers(0, 4))
def test_what_is_listed_can_be_handed_back(moto_store: Store, keys: set[str], chosen: int) -> None:
    """What ls gives is what rm deletes: the file, or with recursive=True the folder, and nothing else."""
    moto_store.fill({key: key.encode() for key in keys})
    fs = moto_store.fs
    fs.invalidate_cache()
    listed = fs.ls(moto_store.bucket, detail=True)
    path, kind = (listed[chosen % len(listed)][name] for name in ("name", "type"))
    key = path.removeprefix(f"{moto_store.bucket}/")
    if kind == "directory" and key not in keys:
        with pytest.raises(IsADirectoryError):
            fs.rm(path)
        assert moto_store.contents().keys() == keys
    fs.rm(path, recursive=kind == "directory")
    gone = {each for each in keys if each == key or (kind == "directory" and each.startswith(f"{key}/"))}
    assert moto_store.contents().keys() == keys - gone


# -- folders, patterns and lists ---


FOLDERS = {"run[1]/a": b"1", "run[1]/s/b": b"2", "run1/a": b"3", "run1/s/b": b"4", "run": b"5"}


@pytest.mark.slow
@pytest.mark.parametrize("slash", ["", "/"])
def test_folders_with_special_characters(store: Store, tmp_path: Path, slash: str) -> None:
    """A folder whose name looks like a pattern is that folder, with all below it."""
    fs, folder = store.fs, store.path(f"run[1]{slash}")
    store.fill(FOLDERS)
    assert fs.cat(folder, recursive=True) == {store.path("run[1]/a"): b"1", store.path("run[1]/s/b"): b"2"}
    assert fs.find(folder) == [store.path("run[1]/a"), store.path("run[1]/s/b")]
    assert fs.du(folder) == 2
    fs.get(folder, str(tmp_path / "got"), recursive=True)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        "got/a",
        "got/s/b",
    }
    with pytest.raises(IsADirectoryError):
        fs.rm(folder)
    with pytest.raises(IsADirectoryError):
        fs.mv(folder, store.path("new"))
    fs.cp(folder, store.path("copy"), recursive=True)
    fs.mv(folder, store.path("moved"), recursive=True)
    copies = {f"{name}{rest}": body for name in ("copy", "moved") for rest, body in (("/a", b"1"), ("/s/b", b"2"))}
    rest = {key: body for key, body in FOLDERS.items() if not key.startswith("run[1]")}
    assert store.contents() == {**copies, **rest}
    fs.rm(store.path(f"moved{slash}"), recursive=True)
    assert store.contents() == {"copy/a": b"1", "copy/s/b": b"2", **rest}


def test_patterns_still_match(store: Store, tmp_path: Path) -> None:
    """A pattern is one where there is no object of its name, in each method that takes patterns."""
    fs = store.fs
    store.fill({"d/a1": b"1", "d/a2": b"2", "d/b": b"3", "d/a3/c": b"4"})
    pattern = store.path("d/a?")
    assert fs.glob(pattern) == [store.path("d/a1"), store.path("d/a2"), store.path("d/a3")]
    assert fs.cat(pattern) == {store.path("d/a1"): b"1", store.path("d/a2"): b"2"}
    fs.get(pattern, f"{tmp_path}/got/")
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == ["a1", "a2"]
    fs.cp(pattern, store.path("e/"))
    fs.rm(store.path("d/a?"))
    assert store.contents() == {"e/a1": b"1", "e/a2": b"2", "d/b": b"3", "d/a3/c": b"4"}
    with pytest.raises(IsADirectoryError):
        fs.rm(pattern)
    fs.rm([store.path("e/a[12]"), store.path("d/a?")], recursive=True)
    assert store.contents() == {"d/b": b"3"}


@pytest.mark.parametrize("depth", [1, 2])
def test_depth_of_a_deletion(store: Store, depth: int) -> None:
    """rm with maxdepth leaves what is deeper."""
    store.fill({"d/a": b"1", "d/s/b": b"2", "d/s/t/c": b"3"})
    store.fs.rm(store.path("d"), recursive=True, maxdepth=depth)
    assert store.contents().keys() == {1: {"d/s/b", "d/s/t/c"}, 2: {"d/s/t/c"}}[depth]


@pytest.mark.parametrize("prefix", ["", "s3://"])
def test_lists(store: Store, tmp_path: Path, prefix: str) -> None:
    """Lists of names, of URLs too, and of names that look like patterns."""
    fs = store.fs
    model = {"t[1]f": b"1", "t1f": b"2", "u?": b"3", "ux": b"4"}
    store.fill(model)
    names = [prefix + store.path("t[1]f"), prefix + store.path("u?")]
    assert fs.cat(names) == {store.path("t[1]f"): b"1", store.path("u?"): b"3"}
    assert fs.expand_path(names) == [store.path("t[1]f"), store.path("u?")]
    fs.get(names, f"{tmp_path}/")
    assert ((tmp_path / "t[1]f").read_bytes(), (tmp_path / "u?").read_bytes()) == (b"1", b"3")
    fs.cp(names, prefix + store.path("copies/"))
    fs.mv(names, prefix + store.path("moved/"))
    fs.put([str(tmp_path / "t[1]f"), str(tmp_path / "u?")], prefix + store.path("sent/"))
    made = {f"{folder}/{name}": model[name] for folder in ("copies", "moved", "sent") for name in ("t[1]f", "u?")}
    assert store.contents() == {**made, "t1f": b"2", "ux": b"4"}
    fs.rm(
        [prefix + store.path(f"{folder}/{name}") for folder in ("copies", "moved", "sent") for name in ("t[1]f", "u?")]
    )
    assert store.contents() == {"t1f": b"2", "ux": b"4"}


# -- moving ---


def test_move_into_a_folder_below(store: Store) -> None:
    """What was just copied is not deleted, where the pattern or the folder takes it in too."""
    fs = store.fs
    store.fill({"d/k": b"1", "d/sub/t": b"2"})
    fs.mv(store.path("d/k*"), store.path("d/kept/"), recursive=True)
    assert store.contents() == {"d/kept/k": b"1", "d/sub/t": b"2"}
    fs.mv(store.path("d/"), store.path("d/below"), recursive=True)
    assert store.contents() == {"d/below/kept/k": b"1", "d/below/sub/t": b"2"}


@pytest.mark.parametrize("recursive", [False, True])
def test_move_onto_itself(store: Store, recursive: bool) -> None:
    """What keeps its name is not deleted, however that is written."""
    store.fill({"k": b"1", "d/k": b"2", "k?": b"3"})
    for name in ("k", "k?"):
        store.fs.mv(store.path(name), f"s3://{store.path(name)}", recursive=recursive)
        store.fs.mv([store.path(name)], [f"s3://{store.path(name)}"], recursive=recursive)
    if recursive:
        store.fs.mv(store.path("d/"), f"s3://{store.path('d')}", recursive=True)
    assert store.contents() == {"k": b"1", "d/k": b"2", "k?": b"3"}


def test_move_of_two_to_one(store: Store) -> None:
    """Two sources of one target are refused before either is touched, and so is a target that is a source."""
    model = {"a/f": b"1", "b/f": b"2", "c": b"3"}
    store.fill(model)
    for sources, target in (
        (["a/f", "b/f"], store.path("new/")),
        (["a/f", "b/f"], [store.path("c"), store.path("c")]),
        (["a/f", "b/f"], [store.path("b/f"), store.path("c")]),
    ):
        for call in (store.fs.mv, store.fs.cp):
            with pytest.raises(ValueError, match="target"):
                call([store.path(each) for each in sources], target)
    with pytest.raises(ValueError, match="targets"):
        store.fs.mv([store.path("a/f")], [])
    assert store.contents() == model


def test_move_of_what_is_replaced_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that another program replaces after it was copied is not deleted."""
    store.fill({"k": b"old"})
    copy = CSXFileSystem._cp_file

    async def copy_and_replace(*args: Any, **kwargs: Any) -> None:
        await copy(*args, **kwargs)
        store.put("k", b"new")

    monkeypatch.setattr(CSXFileSystem, "_cp_file", copy_and_replace)
    with pytest.raises(OSError, match="k"):
        store.fs.mv(store.path("k"), store.path("moved"))
    assert store.contents() == {"k": b"new", "moved": b"old"}


@pytest.mark.parametrize("names", [["d/a"], ["d/a", "d/b"]])
def test_move_of_what_is_replaced_last(server: LocalS3, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    """A source that another program replaces after all were compared is not deleted."""
    store = Store(server.storage_options(), keeps_all_keys=False)
    store.fill(dict.fromkeys(names, b"old"))
    method = "_rm_file" if len(names) == 1 else "_bulk_delete"
    delete, replaced = getattr(CSXFileSystem, method), []

    async def replace_and_delete(*args: Any, **kwargs: Any) -> Any:
        replaced.append(store.put("d/a", b"new"))
        return await delete(*args, **kwargs)

    monkeypatch.setattr(CSXFileSystem, method, replace_and_delete)
    with pytest.raises(OSError, match="d/a"):
        store.fs.mv(store.path("d"), store.path("moved"), recursive=True)
    assert len(replaced) == 1
    assert store.contents() == {"d/a": b"new", **{each.replace("d/", "moved/"): b"old" for each in names}}


@pytest.mark.parametrize("names", [["d/a"], ["d/a", "d/b"]])
@pytest.mark.parametrize("fault", [{"cut_down": 0}, {"answer": error_answer(501, "NotImplemented")}], ids=str)
def test_move_without_conditions(server: LocalS3, names: list[str], fault: dict[str, Any]) -> None:
    """A response that is lost, or a server that refuses conditions, does not keep a move from ending."""
    store = Store(server.storage_options(), keeps_all_keys=False)
    store.fill(dict.fromkeys(names, b"old"))
    with fault_proxy(server.endpoint_url) as proxy:
        method, query = ("DELETE", "") if len(names) == 1 else ("POST", "delete")
        proxy.faults = [Fault(method, query=query, **fault)]
        through(proxy, server).mv(store.path("d"), store.path("moved"), recursive=True)
        assert proxy.faults[0].done == 1
    assert store.contents() == {each.replace("d/", "moved/"): b"old" for each in names}


def test_move_of_what_is_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a copy is not what its source is, no source is deleted."""
    store.fill({"d/a": b"aaaa", "d/b": b"bbbb"})
    copy = CSXFileSystem._cp_file

    async def copy_and_damage(fs: Any, source: str, target: str, **kwargs: Any) -> None:
        await copy(fs, source, target, **kwargs)
        if target.endswith("b"):
            store.put("moved/b", b"bbbx")

    monkeypatch.setattr(CSXFileSystem, "_cp_file", copy_and_damage)
    with pytest.raises(OSError, match="differs from its source"):
        store.fs.mv(store.path("d"), store.path("moved"), recursive=True)
    assert {"d/a": b"aaaa", "d/b": b"bbbb"}.items() <= store.contents().items()


# -- what is missing, and folders ---


def test_missing(store: Store, tmp_path: Path) -> None:
    """What is named and is not there is a FileNotFoundError, and nothing is changed."""
    fs, model = store.fs, {"here": b"1", "d/here": b"2"}
    store.fill(model)
    for name in ("missing", "missing?", "miss*", "d/missing", "here/below", "missing/"):
        path = store.path(name)
        for call in (
            lambda path: fs.rm(path),
            lambda path: fs.rm(path, recursive=True),
            lambda path: fs.rm([store.path("here"), path]) if "*" not in path and "?" not in path else fs.rm(path),
            lambda path: fs.cp(path, store.path("new")),
            lambda path: fs.mv(path, store.path("new")),
            lambda path: fs.mv(path, store.path("new"), recursive=True),
            lambda path: fs.get(path, str(tmp_path / "got")),
            lambda path: fs.get(path, str(tmp_path / "got"), recursive=True),
            lambda path: fs.cat(path),
            lambda path: fs.info(path),
            lambda path: fs.ls(path),
            lambda path: fs.cat_file(path, start=-2),
            lambda path: fs.open(path),
        ):
            with pytest.raises(FileNotFoundError):
                call(path)
        assert not fs.exists(path)
        assert not fs.isfile(path)
        assert not fs.isdir(path)
    assert store.contents() == model


def test_folder_is_not_an_object(store: Store) -> None:
    """rm of a folder or a bucket without recursive=True deletes nothing and says so; so does a list with one."""
    fs, model = store.fs, {"a": b"0", "d/a": b"1"}
    store.fill(model)
    for path in (
        store.path("d"),
        store.path("d/"),
        store.bucket,
        f"s3://{store.path('d')}",
        [store.path("a"), store.path("d")],
    ):
        with pytest.raises(IsADirectoryError):
            fs.rm(path)
    for call in (fs.cat_file, lambda path: fs.cat_file(path, start=-2), fs.open, fs.cat):
        with pytest.raises(FileNotFoundError):
            call(store.path("d"))
    assert store.contents() == model


def test_bucket_is_not_an_object(store: Store, new_bucket: str, tmp_path: Path) -> None:
    """A bucket where an object is needed is an error of Python's, and changes nothing."""
    fs, local = store.fs, tmp_path / "file"
    local.write_bytes(b"new")
    store.fill({"a": b"0"})
    for path in (store.bucket, f"s3://{store.bucket}", new_bucket):
        for read in (fs.cat, fs.cat_file, lambda path: fs.get_file(path, str(tmp_path / "got"))):
            with pytest.raises(FileNotFoundError, match="object"):
                read(path)
        for change in (
            lambda path: fs.pipe_file(path, b"new"),
            lambda path: fs.pipe({path: b"new", store.path("b/"): b""}),
            lambda path: fs.put_file(str(local), path),
            lambda path: fs.cp_file(store.path("a"), path),
            fs.touch,
        ):
            with pytest.raises(ValueError, match=f"{path.removeprefix('s3://')} names no object"):
                change(path)
    assert not any(map(fs.isfile, ("", "s3://", store.bucket, new_bucket)))
    assert store.contents().keys() <= {"a", "b/"}
    assert not fs.exists(new_bucket)


@pytest.mark.parametrize("method", ["cp", "mv"])
def test_folder_to_a_bucket(moto_store: Store, new_bucket: str, method: str) -> None:
    """What a folder holds goes to the root of a bucket without the folder's marker."""
    moto_store.fill({"folder/": b"", "folder/a": b"1", "folder/b/": b""})
    getattr(moto_store.fs, method)(moto_store.path("folder/"), f"s3://{new_bucket}/", recursive=True)
    found = moto_store.client.list_objects_v2(Bucket=new_bucket)["Contents"]
    assert [each["Key"] for each in found] == ["a", "b/"]
    assert bool(moto_store.contents()) == (method == "cp")


def test_file_with_a_slash(moto_store: Store) -> None:
    """find and du take the name of a file with a slash behind it, as ls and info do; a marker is no file."""
    fs = moto_store.fs
    moto_store.fill({"file": b"12", "marked/": b""})
    for method in (fs.find, fs.ls, fs.glob, fs.expand_path):
        assert method(moto_store.path("file/")) == [moto_store.path("file")]
    assert fs.du(moto_store.path("file/")) == fs.info(moto_store.path("file/"))["size"] == 2
    assert fs.find(moto_store.path("marked/")) == fs.ls(moto_store.path("marked/")) == []


def test_omitted_object(store: Store) -> None:
    """cat of one object cannot leave it out, and raises its error; of many it can."""
    store.fill({"a": b"1"})
    with pytest.raises(FileNotFoundError):
        store.fs.cat(store.path("missing"), on_error="omit")
    assert isinstance(store.fs.cat(store.path("missing"), on_error="return"), FileNotFoundError)
    assert store.fs.cat([store.path("missing"), store.path("a")], on_error="omit") == {store.path("a"): b"1"}


@pytest.mark.parametrize("url", ["s3://{}", "{}", "s3://{}/", "{}/"])
def test_rmdir(store: Store, url: str) -> None:
    """rmdir takes a bucket in each form, and deletes it if it is empty."""
    path = url.format(store.bucket)
    store.put("k")
    with pytest.raises(OSError):  # noqa: PT011
        store.fs.rmdir(path)
    with pytest.raises(FileExistsError):
        store.fs.rmdir(f"s3://{store.path('k')}")
    with pytest.raises(FileNotFoundError):
        store.fs.rmdir(f"s3://{store.path('missing')}")
    store.fs.rm(f"s3://{store.path('k')}")
    store.fs.rmdir(path)
    assert store.bucket not in [each["Name"] for each in store.client.list_buckets()["Buckets"]]


@pytest.mark.parametrize("url", ["{}", "s3://{}", "csx://{}/", "s3a://{}"])
def test_names_of_buckets(moto_store: Store, url: str) -> None:
    """Methods that take the name of a bucket take its URL, and refuse a path in it."""
    fs, bucket = moto_store.fs, url.format(moto_store.bucket)
    assert not fs.is_bucket_versioned(bucket)
    fs.make_bucket_versioned(bucket)
    assert fs.is_bucket_versioned(bucket)
    for key in ("a", "b"):
        moto_store.client.create_multipart_upload(Bucket=moto_store.bucket, Key=key)
    (upload, _) = fs.list_multipart_uploads(bucket)
    fs.abort_mpu(bucket, upload["Key"], upload["UploadId"])
    fs.clear_multipart_uploads(bucket)
    assert fs.list_multipart_uploads(bucket) == []
    for call in (fs.is_bucket_versioned, fs.make_bucket_versioned, fs.list_multipart_uploads):
        for wrong in (f"s3://{moto_store.bucket}/key", "s3://", ""):
            with pytest.raises(ValueError, match="not the name of a bucket"):
                call(wrong)


def test_expanded_paths(moto_store: Store) -> None:
    """A folder of exactly that name is no pattern, and a pattern that matches nothing is left out."""
    moto_store.fill({"a": b"1", "d[1]/m": b"2", "d[1]/n/o": b"3", "p//q": b"4"})
    fs, path = moto_store.fs, moto_store.path
    assert fs.expand_path(path("d[1]"), recursive=True, maxdepth=1) == [path("d[1]"), path("d[1]/m"), path("d[1]/n")]
    assert fs.expand_path([path("a"), path("no*")], recursive=True) == [path("a")]
    assert fs.expand_path(path("p"), recursive=True) == [path("p"), path("p//q")]


# -- requests ---


def test_requests_for_names(moto_store: Store, tmp_path: Path) -> None:
    """A plain name costs no request of its own, and one with special characters a HEAD at most."""
    fs = moto_store.fs
    moto_store.fill({"plain": b"1", "t[1]f": b"2", "d/a": b"3"})
    fs.info(moto_store.path("plain"))

    def requests(call: Callable[[], object]) -> list[str]:
        with recorded_requests() as operations:
            call()
        return list(operations)

    plain, special, target = moto_store.path("plain"), moto_store.path("t[1]f"), str(tmp_path / "got")
    assert requests(lambda: fs.cat(plain)) == ["GetObject"]
    assert requests(lambda: fs.cat(special)) == ["HeadObject", "GetObject"]
    assert requests(lambda: fs.cat_file(special)) == ["GetObject"]
    assert requests(lambda: fs.get(plain, target)) == ["GetObject"]
    assert requests(lambda: fs.get(special, target)) == ["HeadObject", "GetObject"]
    assert requests(lambda: fs.expand_path(plain)) == []
    assert requests(lambda: fs.expand_path(special)) == ["HeadObject"]
    assert requests(lambda: fs.isfile(plain)) == ["HeadObject"]
    assert requests(lambda: fs.glob(plain)) == ["HeadObject"]
    assert requests(lambda: fs.glob(moto_store.path("d/*"))) == ["HeadObject", "ListObjectsV2"]
    assert requests(lambda: fs.cat(moto_store.path("d/*"))) == ["HeadObject", "ListObjectsV2", "GetObject"]
    assert requests(lambda: fs.expand_path(moto_store.path("d/*"), recursive=True)) == ["HeadObject", "ListObjectsV2"]
    assert requests(lambda: fs.get(moto_store.path("d"), f"{target}-d", recursive=True)) == [
        "ListObjectsV2",
        "HeadObject",
        "GetObject",
    ]
    assert requests(lambda: fs.rm_file(plain)) == ["DeleteObject"]
    assert requests(lambda: fs.rm(special)) == ["HeadObject", "DeleteObject"]
    assert requests(lambda: fs.rm(moto_store.path("d"), recursive=True)) == ["ListObjectsV2", "DeleteObjects"]


def test_deletion_of_names_that_xml_cannot_contain(fs: CSXFileSystem, bucket: str) -> None:
    """They are deleted with all others below a folder, though no list of names can have them."""
    fs.pipe({f"{bucket}/folder/{name}": b"" for name in ("a", "b\x01", "c\x1f/d", "e")})
    fs.rm(f"{bucket}/folder", recursive=True)
    assert fs.find(bucket) == []


def test_local_name_that_is_not_utf8(fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """It is refused, and nothing is uploaded, as the name cannot be kept."""
    for name in (b"a", b"bad\xff", b"c"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(b"")
    with pytest.raises(ValueError, match=r"bad.*UTF-8.*rename"):
        fs.put(f"{tmp_path}/", f"{bucket}/folder/", recursive=True)
    with pytest.raises(ValueError, match="UTF-8"):
        fs.pipe_file(f"{bucket}/bad\udcff", b"")
    assert fs.find(bucket) == []
