"""copy and move: between any two paths, byte for byte, completely or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from checkpoints import MIB, names
from conftest import recorded_requests
from fsspec.callbacks import Callback
from proxy import Fault, fault_proxy
from thinning import thinned

import fsspec_csx.distributed
from fsspec_csx import copy, load, move, save
from fsspec_csx.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    CheckpointPathError,
    ChecksumError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from fsspec_csx.manage import file_copy
from fsspec_csx.manage.copy import CheckpointTransfer
from fsspec_csx.manage.file_copy import same_content
from fsspec_csx.manage.location import Location, expand_pattern
from fsspec_csx.s3 import server_copy
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.s3.transport.request_body import FileSliceBody
from fsspec_csx.testing import LocalS3

DATA = os.urandom(20 * MIB + 4321)
KINDS = ("local", "memory", "s3")


@pytest.fixture
def folder(environment: LocalS3, tmp_path: Path) -> Callable[[str], str]:
    """Makes a folder of the test's own, of a kind."""
    fsspec.filesystem("memory").store.clear()

    def make(kind: str) -> str:
        name = uuid.uuid4().hex[:8]
        if kind == "local":
            (tmp_path / name).mkdir()
            return str(tmp_path / name)
        if kind == "memory":
            fsspec.filesystem("memory").makedirs(f"/{name}")
        return f"memory://{name}" if kind == "memory" else f"s3://copies/{name}"

    return make


def written(path: str, data: bytes) -> str:
    """The path of a file that holds this."""
    with fsspec.open(path, "wb") as file:
        file.write(data)
    return path


def content(path: str) -> bytes:
    """What a file holds."""
    with fsspec.open(path, "rb") as file:
        return bytes(file.read())


def exists(path: str) -> bool:
    """Whether there is such a file now."""
    fs, inner = fsspec.url_to_fs(path)
    fs.invalidate_cache()
    return bool(fs.exists(inner))


class Noting(Callback):  # type: ignore[misc]
    """Notes each state as (value, size)."""

    def __init__(self) -> None:
        super().__init__()
        self.states: list[tuple[int, int]] = []

    def call(self, *args: Any, **kwargs: Any) -> None:
        self.states.append((self.value, self.size))


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
@pytest.mark.parametrize("size", [0, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 5 * MIB)), len(DATA)])
def test_every_direction(folder: Callable[[str], str], here: str, there: str, size: int) -> None:
    """A copy and a moved file are the same byte for byte, and nothing else is left beside them."""
    source = written(f"{folder(here)}/x.mdl", DATA[:size])
    one, other = folder(there), folder(there)
    noting = Noting()
    assert copy(source, f"{one}/y.mdl", callback=noting) == f"{one}/y.mdl"
    assert noting.states[-1] == (size, size)
    assert content(f"{one}/y.mdl") == DATA[:size]
    assert exists(source)
    assert move(source, f"{other}/") == f"{other}/x.mdl"
    assert content(f"{other}/x.mdl") == DATA[:size]
    assert not exists(source)
    assert (names(one), names(other)) == (["y.mdl"], ["x.mdl"])


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
@pytest.mark.parametrize("do", [copy, move])
def test_what_exists_stays(folder: Callable[[str], str], do: Callable[..., str], here: str, there: str) -> None:
    """A target that exists is refused and stays, and so does the source, unless it may be replaced."""
    source = written(f"{folder(here)}/x.mdl", b"new")
    target = written(f"{folder(there)}/y.mdl", b"the old one")
    with pytest.raises(FileExistsError, match=r"y\.mdl exists already\. .*--force"):
        do(source, target)
    assert (content(source), content(target)) == (b"new", b"the old one")
    do(source, target, overwrite=True)
    assert content(target) == b"new"
    assert exists(source) == (do is copy)


def test_local_folder_takes_the_name(tmp_path: Path) -> None:
    """A local folder takes the source's name, as cp has it; a path object is as good as a text."""
    (tmp_path / "x.mdl").write_bytes(b"x")
    (tmp_path / "down").mkdir()
    assert copy(tmp_path / "x.mdl", tmp_path / "down") == str(tmp_path / "down" / "x.mdl")
    assert (tmp_path / "down" / "x.mdl").read_bytes() == b"x"


def test_folders_and_bucket_are_made(environment: LocalS3, tmp_path: Path, new_bucket: str) -> None:
    """Missing local folders are made, and a missing bucket."""
    (tmp_path / "x.mdl").write_bytes(b"x")
    copy(tmp_path / "x.mdl", f"s3://{new_bucket}/deep/x.mdl")
    copy(f"s3://{new_bucket}/deep/x.mdl", tmp_path / "a" / "b" / "x.mdl")
    assert (tmp_path / "a" / "b" / "x.mdl").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["a#b?c.mdl", "a*b [1] 100%.mdl", "checkpoint_1", "ümlaut {x}.mdl", "-f.mdl"])
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_name_is_a_name(folder: Callable[[str], str], kind: str, name: str) -> None:
    """No character of a name means anything, and no other file is touched."""
    here, there = folder(kind), folder("local")
    for each in (name, f"{name}0", "aXb 1 100%.mdl"):
        fs, inner = fsspec.url_to_fs(here)
        fs.pipe_file(f"{inner}/{each}", each.encode())
    assert move(f"{here}/{name}", f"{there}/") == f"{there}/{name}"
    assert (Path(there) / name).read_bytes() == name.encode()
    assert names(here) == sorted([f"{name}0", "aXb 1 100%.mdl"])
    move(f"{there}/{name}", f"{here}/{name}")
    assert names(here) == sorted([name, f"{name}0", "aXb 1 100%.mdl"])


def test_onto_itself(folder: Callable[[str], str], tmp_path: Path) -> None:
    """A file is not copied onto itself, through links neither, even if it may be replaced."""
    local = written(f"{tmp_path}/x.mdl", b"x")
    os.symlink(local, tmp_path / "link.mdl")
    os.link(local, tmp_path / "hard.mdl")
    remote = written(f"{folder('s3')}/x.mdl", b"x")
    stored = written(f"{folder('memory')}/x.mdl", b"x")
    pairs = [(local, local), (local, f"{tmp_path}/link.mdl"), (f"{tmp_path}/hard.mdl", local), (remote, remote)]
    pairs += [(remote, remote.replace("s3://", "csx://")), (stored, stored), (local, f"file://{local}")]
    for source, target in pairs:
        for do in (copy, move):
            with pytest.raises(CheckpointPathError, match="source file"):
                do(source, target, overwrite=True)
    assert content(local) == content(remote) == content(stored) == b"x"


@pytest.mark.parametrize("overwrite", [False, True])
def test_onto_itself_by_another_name_of_the_store(
    folder: Callable[[str], str], environment: LocalS3, overwrite: bool
) -> None:
    """A store may have several endpoints: an object that has the same place at both is not copied onto itself."""
    alias = {
        **environment.storage_options(),
        "endpoint_url": environment.endpoint_url.replace("127.0.0.1", "localhost"),
    }
    single = written(f"{folder('s3')}/x.mdl", b"x")
    whole = sharded(f"{folder('s3')}/ckpt", SHARDED)
    for source in (single, whole):
        for do in (copy, move):
            with pytest.raises(CheckpointPathError, match="source f"):
                do(source, source, overwrite=overwrite, target_options=alias)
    assert content(single) == b"x"
    assert held(whole) == SHARDED


def test_links(tmp_path: Path) -> None:
    """Of a link that is moved the content goes, and the file it points to stays; a link at the target stays too."""
    (tmp_path / "x.mdl").write_bytes(b"x")
    os.symlink("x.mdl", tmp_path / "link.mdl")
    (tmp_path / "old.mdl").write_bytes(b"old")
    os.symlink("old.mdl", tmp_path / "current.mdl")
    move(tmp_path / "link.mdl", tmp_path / "current.mdl", overwrite=True)
    assert (tmp_path / "current.mdl").is_symlink()
    assert (tmp_path / "old.mdl").read_bytes() == (tmp_path / "x.mdl").read_bytes() == b"x"
    assert not (tmp_path / "link.mdl").is_symlink()


def test_local_move_copies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one disk a file is given another name; onto another disk it is copied, compared and deleted."""
    (tmp_path / "x.mdl").write_bytes(DATA[:MIB])
    before = (tmp_path / "x.mdl").stat().st_ino
    move(tmp_path / "x.mdl", tmp_path / "new" / "y.mdl")
    assert (tmp_path / "new" / "y.mdl").stat().st_ino == before
    other = Path("/dev/shm") / uuid.uuid4().hex
    if other.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("all is on one disk")
    move(tmp_path / "new" / "y.mdl", other)
    try:
        assert other.read_bytes() == DATA[:MIB]
        assert not (tmp_path / "new" / "y.mdl").exists()
    finally:
        other.unlink()


def test_server_copies_itself(folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same credentials the server copies; a large object in parts, with its metadata."""
    monkeypatch.setattr(server_copy, "_COPIED_WHOLE", 8 * MIB)
    here = folder("s3")
    fs, inner = fsspec.url_to_fs(f"{here}/x.mdl")
    fs.pipe_file(inner, DATA, Metadata={"run": "7"}, ContentType="application/x-run")
    with recorded_requests() as requests:
        copy(f"{here}/x.mdl", f"{here}/y.mdl")
    assert requests.count("UploadPartCopy") == 3
    assert not {"GetObject", "PutObject", "UploadPart"} & {*requests}
    assert content(f"{here}/y.mdl") == DATA
    head = fs.call_s3("head_object", Bucket="copies", Key=f"{inner.partition('/')[2][:-5]}y.mdl")
    assert (head["Metadata"], head["ContentType"]) == ({"run": "7"}, "application/x-run")


@pytest.mark.parametrize("size", thinned([0, MIB, len(DATA)], MIB))
def test_across_servers(
    environment: LocalS3, aws_files: Path, folder: Callable[[str], str], size: int, tmp_path: Path
) -> None:
    """Between two servers, each with a profile of its own, an object goes through memory."""
    source = written(f"{folder('s3')}/x.mdl", DATA[:size])
    with LocalS3() as other:
        identity = other.identity
        (aws_files / "credentials").write_text(
            f"[there]\naws_access_key_id = {identity.access_key}\naws_secret_access_key = {identity.secret_key}\n"
        )
        (aws_files / "config").write_text(f"[profile there]\nendpoint_url = {other.endpoint_url}\n")
        options = {"profile": "there", "endpoint_url": other.endpoint_url}
        noting = Noting()
        target = f"s3://copies/{uuid.uuid4().hex}.mdl"
        assert move(source, target, target_options=options, callback=noting) == target
        assert noting.states[-1] == (size, size)
        fs = fsspec.filesystem("s3", **options)
        assert fs.cat_file(target) == DATA[:size]
        assert not exists(source)
        # The same bucket and key on the other server is another object.
        assert copy(target, target, source_options=options) == target
        assert content(target) == DATA[:size]


def replace(path: Path) -> None:
    """Put another file of its size in a file's place."""
    other = path.with_name("other")
    other.write_bytes(DATA[::-1])
    other.replace(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "shortened": lambda path: os.truncate(path, MIB),
    "written over": lambda path: path.write_bytes(DATA[::-1]),
    "replaced": replace,
    "removed": Path.unlink,
}
CHANGED = r"x\.mdl changed while it was copied\. Copy it again"
REMOVED = r"x\.mdl was removed while it was copied\. Check what"


@pytest.mark.parametrize("change", CHANGES)
def test_changed_source_is_no_copy(
    folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """A source that changes while its second part is on the way is an error, and nothing is left at the target."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path, target = tmp_path / "x.mdl", f"{folder('s3')}/y.mdl"
    path.write_bytes(DATA)
    with fault_proxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        proxy.faults = [Fault("PUT", "partNumber=2", before=lambda: CHANGES[change](path))]
        removed = change == "removed"
        with pytest.raises(FileNotFoundError if removed else OSError, match=REMOVED if removed else CHANGED):
            move(path, target)
        assert proxy.faults[0].done
        assert proxy.made("DELETE", "uploadId=")
        assert not exists(target)
    assert path.exists() != removed


def test_changed_small_source_is_no_copy(
    folder: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that changes between the two times that it is read, for its checksum and to be sent, is an error."""
    path, target = tmp_path / "x.mdl", written(f"{folder('s3')}/y.mdl", b"former")
    path.write_bytes(DATA[:MIB])
    prepare = FileSliceBody.prepare

    def change_afterwards(part: FileSliceBody) -> None:
        prepare(part)
        path.write_bytes(DATA[:MIB][::-1])

    monkeypatch.setattr(FileSliceBody, "prepare", change_afterwards)
    with pytest.raises(OSError, match=CHANGED):
        copy(path, target, overwrite=True)
    assert content(target) == b"former"


def test_source_changed_on_the_way_to_memory_is_no_copy(folder: Callable[[str], str], tmp_path: Path) -> None:
    """The same where there is no S3."""
    path, target = tmp_path / "x.mdl", f"{folder('memory')}/y.mdl"
    path.write_bytes(DATA)

    class Changing(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            path.write_bytes(DATA[::-1])

    with pytest.raises(OSError, match=CHANGED):
        move(path, target, callback=Changing())
    assert not exists(target)
    assert path.exists()


@pytest.mark.parametrize("kinds", [("local", "s3"), ("s3", "s3"), ("memory", "local")], ids=" to ".join)
def test_move_that_was_stopped_before_the_deletion(folder: Callable[[str], str], kinds: tuple[str, str]) -> None:
    """A move finds the whole copy of a former one, and needs no more than delete the source; another file is kept."""
    source, target = (f"{folder(kind)}/x.mdl" for kind in kinds)
    written(source, DATA)
    written(target, DATA[:-1] + b"?")
    with pytest.raises(FileExistsError):
        move(source, target)
    copy(source, target, overwrite=True)
    assert move(source, target) == target
    with fsspec.open(target, "rb") as file:
        assert file.read() == DATA
    assert not Location.of(source, None).exists()


def test_damaged_copy_is_no_move(folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The source of a move stays if the copy turns out to be another."""

    def damage(source: Location, target: Location, *_: object) -> None:
        written(target.text, b"other")

    monkeypatch.setattr(file_copy, "_copy", damage)
    for here, there in (("local", "s3"), ("s3", "local"), ("s3", "s3"), ("memory", "local")):
        source = written(f"{folder(here)}/x.mdl", b"bytes")
        with pytest.raises(ChecksumError, match="not the same"):
            move(source, f"{folder(there)}/y.mdl")
        assert exists(source)


def test_replaced_before_the_deletion(folder: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that another program replaces after it was compared is not deleted."""
    compared = file_copy.same_content

    def compared_and_replaced(source: Location, target: Location) -> bool:
        equal = compared(source, target)
        written(source.text, b"newer")
        return equal

    monkeypatch.setattr(file_copy, "same_content", compared_and_replaced)
    for here, there in (("local", "s3"), ("s3", "local"), ("s3", "s3"), ("memory", "local")):
        source, target = written(f"{folder(here)}/x.mdl", b"bytes"), f"{folder(there)}/y.mdl"
        with pytest.raises(OSError, match=r"x\.mdl"):
            move(source, target)
        assert (content(source), content(target)) == (b"newer", b"bytes")


def test_appeared_meanwhile(folder: Callable[[str], str], tmp_path: Path) -> None:
    """A target that another program creates during the copy is not replaced either."""
    source = written(f"{tmp_path}/x.mdl", DATA)
    target = f"{folder('s3')}/y.mdl"

    class Other(Callback):  # type: ignore[misc]
        def set_size(self, size: int) -> None:
            Path(f"{tmp_path}/z.mdl").write_bytes(b"other")

    with pytest.raises(FileExistsError):
        copy(written(target, DATA), f"{tmp_path}/z.mdl", callback=Other())
    assert content(f"{tmp_path}/z.mdl") == b"other"
    fs, inner = fsspec.url_to_fs(target)
    with pytest.raises(ObjectExistsError):
        fs.put_file(source, inner, mode="create", resumable=True)


def test_what_is_missing_or_denied(environment: LocalS3, server: LocalS3, tmp_path: Path, bucket: str) -> None:
    """Missing objects and buckets, and missing rights, are reported, and no target is made."""
    reader = {**server.storage_options("reader")}
    (tmp_path / "x.mdl").write_bytes(b"x")
    with pytest.raises(ObjectNotFoundError, match="missing"):
        copy(f"s3://{bucket}/missing.mdl", tmp_path / "y.mdl")
    with pytest.raises((BucketNotFoundError, ObjectNotFoundError)):
        copy("s3://no-such-bucket/x.mdl", tmp_path / "y.mdl")
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint .*gone\.mdl"):
        move(tmp_path / "gone.mdl", f"s3://{bucket}/y.mdl")
    with pytest.raises(AccessDeniedError):
        copy(tmp_path / "x.mdl", f"s3://{bucket}/y.mdl", target_options=reader)
    written(f"s3://{bucket}/x.mdl", b"x")
    with pytest.raises(AccessDeniedError):
        move(f"s3://{bucket}/x.mdl", tmp_path / "moved.mdl", source_options=reader)
    assert exists(f"s3://{bucket}/x.mdl")
    assert not exists(f"s3://{bucket}/y.mdl")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["home", "moved.mdl", "x.mdl"]


def test_folder_that_is_no_checkpoint(folder: Callable[[str], str], tmp_path: Path) -> None:
    """A folder that is no checkpoint is named, and neither copied nor replaced."""
    for kind in KINDS:
        path = folder(kind)
        written(f"{path}/x.mdl", b"x")
        with pytest.raises(IsADirectoryError, match="not a checkpoint"):
            copy(path, tmp_path / "y")
        (tmp_path / "one.mdl").write_bytes(b"x")
        if kind != "local":
            with pytest.raises(IsADirectoryError, match="End it with a slash"):
                copy(tmp_path / "one.mdl", path)
    with pytest.raises(NotADirectoryError):
        copy(tmp_path / "one.mdl", tmp_path / "one.mdl" / "y.mdl")


def test_through_wrappers(folder: Callable[[str], str], tmp_path: Path) -> None:
    """A cache before a filesystem learns what is written, and nothing old is read from it."""
    target = f"{folder('s3')}/x.mdl"
    chain = {"filecache": {"cache_storage": str(tmp_path / "cache")}}
    written(f"{tmp_path}/x.mdl", b"first")
    for data in (b"first", b"second"):
        written(f"{tmp_path}/x.mdl", data)
        copy(f"{tmp_path}/x.mdl", f"filecache::{target}", target_options=chain, overwrite=data == b"second")
        with fsspec.open(f"filecache::{target}", "rb", **chain) as file:
            assert file.read() == data
    written(target, b"third")
    copy(f"filecache::{target}", f"{tmp_path}/y.mdl", source_options=chain)
    assert content(f"{tmp_path}/y.mdl") == b"third"


def test_is_loaded_again(root: str, tmp_path: Path) -> None:
    """What was copied loads as before."""
    save({"x": torch.arange(1000)}, f"{root}/model.mdl")
    copy(f"{root}/model.mdl", tmp_path / "x.mdl")
    assert torch.equal(load(tmp_path / "x.mdl")["x"], torch.arange(1000))


@pytest.mark.slow
@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_sameness(folder: Callable[[str], str], here: str, there: str) -> None:
    """One byte makes the difference, wherever it stands."""
    one = Location.of(written(f"{folder(here)}/x", DATA), None)
    path = f"{folder(there)}/y"
    for data, expected in ((DATA, True), (DATA[:-1], False), (DATA[:-1] + bytes([DATA[-1] ^ 1]), False)):
        assert same_content(one, Location.of(written(path, data), None)) is expected


# -- folders that are one checkpoint ----------------------------------------------------------------------------------

SHARDED = {".metadata": b"manifest", "__0_0.distcp": DATA[: 6 * MIB], "__1_0.distcp": b"second", "extra/x.json": b"{}"}
FORMER = {".metadata": b"old manifest", "__0_0.distcp": b"old", "__7_0.distcp": b"stale", "notes.txt": b"mine"}


def sharded(path: str, files: dict[str, bytes]) -> str:
    """The path of a folder with these files."""
    fs, inner = fsspec.url_to_fs(path)
    for name, data in files.items():
        fs.makedirs(os.path.dirname(f"{inner}/{name}"), exist_ok=True)
        fs.pipe_file(f"{inner}/{name}", data)
    return path


def held(path: str) -> dict[str, bytes]:
    """The files below a folder."""
    fs, inner = fsspec.url_to_fs(path)
    fs.invalidate_cache()
    found = [name for name in fs.find(inner) if name.startswith(f"{inner}/")]  # an empty folder may stay, as itself
    return {name[len(inner) + 1 :]: fs.cat_file(name) for name in found}


@pytest.mark.slow
@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_sharded(folder: Callable[[str], str], here: str, there: str) -> None:
    """A folder with a manifest is copied and moved as one, and what becomes of the source is nothing or all."""
    source = sharded(f"{folder(here)}/ckpt", SHARDED)
    target = folder(there)
    noting = Noting()
    done = CheckpointTransfer(source, f"{target}/new").run(moving=False, callback=noting)
    size = sum(map(len, SHARDED.values()))
    assert (done.target, done.bytes, noting.states[-1]) == (f"{target}/new", size, (size, size))
    assert held(f"{target}/new") == SHARDED
    assert move(f"{source}/", f"{target}/") == f"{target}/ckpt"
    assert held(f"{target}/ckpt") == SHARDED
    assert held(source) == {}
    if here == "local":
        assert not os.path.exists(source)
    assert names(target) == ["ckpt", "new"]


def test_folder_with_a_link_to_nothing(tmp_path: Path) -> None:
    """A folder whose shard is a link to a file that is gone is not copied or moved without it."""
    source, target = tmp_path / "run", tmp_path / "copy"
    fsspec_csx.distributed.save({"a": torch.ones(4)}, source)
    (shard,) = source.glob("*.distcp")
    shard.rename(tmp_path / "shard")
    shard.symlink_to("../nothing")
    for do in (copy, move):
        with pytest.raises(FileNotFoundError, match=f"{shard.name} is a link to a file that does not exist"):
            do(source, target)
    assert not target.exists()
    shard.unlink()
    shard.symlink_to("../shard")
    copy(source, target)
    assert (target / shard.name).read_bytes() == (tmp_path / "shard").read_bytes()


def test_folder_with_a_link_to_its_shards(tmp_path: Path) -> None:
    """A folder whose shards are in a linked folder is not copied or moved without them; other linked folders stay."""
    source, target = tmp_path / "run", tmp_path / "copy"
    fsspec_csx.distributed.save({"a": torch.ones(4)}, source, prefix_count=2)
    (shards,) = (each for each in source.iterdir() if each.is_dir())
    shards.rename(tmp_path / "shards")
    shards.symlink_to("../shards")
    assert [*load(source)] == ["a"]
    for do in (copy, move):
        with pytest.raises(OSError, match=f"{shards.name} is a link to a folder"):
            do(source, target)
    assert not target.exists()
    shards.unlink()
    (tmp_path / "shards").rename(shards)
    (source / "up").symlink_to("..")
    copy(source, target)
    assert [*load(target)] == ["a"]
    assert not (target / "up").exists()


def test_options_are_not_shown(tmp_path: Path) -> None:
    """A debugger or a log that shows a transfer shows no secret of its options."""
    assert "hidden" not in repr(CheckpointTransfer(tmp_path / "x", tmp_path / "y", None, {"secret": "hidden"}))


@pytest.mark.parametrize("there", KINDS)
def test_sharded_over_another(folder: Callable[[str], str], there: str) -> None:
    """A checkpoint that exists is refused; if it may be replaced, its stale shards go, and other files stay."""
    source = sharded(f"{folder('local')}/ckpt", SHARDED)
    target = sharded(f"{folder(there)}/old", FORMER)
    with pytest.raises(FileExistsError, match="old exists already"):
        copy(source, target)
    assert held(target) == FORMER
    assert copy(source, target, overwrite=True) == target
    assert held(target) == {**SHARDED, "notes.txt": b"mine"}


@pytest.mark.parametrize("there", KINDS)
def test_manifest_comes_last(folder: Callable[[str], str], there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted copy leaves no manifest, neither the old nor the new, and can be repeated."""
    source = sharded(f"{folder('s3')}/ckpt", SHARDED)
    target = sharded(f"{folder(there)}/old", FORMER)
    fresh = f"{folder(there)}/new"
    carried: list[str] = []

    def failing(source: Location, *args: Any, **kwargs: Any) -> int:
        if source.name == "__1_0.distcp" and "fail" not in carried:
            carried.append("fail")
            raise ConnectionResetError
        carried.append(source.name)
        return file_copy.copy_file(source, *args, **kwargs)

    monkeypatch.setattr("fsspec_csx.manage.folder_copy.copy_file", failing)
    monkeypatch.setattr("fsspec_csx.manage.folder_copy._AT_A_TIME", 1)
    for path, overwrite in ((fresh, False), (target, True)):
        carried.clear()
        with pytest.raises(ConnectionResetError):
            copy(source, path, overwrite=overwrite)
        assert (".metadata" in held(path)) == (there == "local" and overwrite)  # there it is untouched until the end
        assert copy(source, path, overwrite=overwrite) == path
        assert carried == ["__0_0.distcp", "fail", "__1_0.distcp", "extra/x.json".rpartition("/")[2], ".metadata"]
        assert {**held(path), "notes.txt": b"mine"} == {**SHARDED, "notes.txt": b"mine"}


def test_sharded_into_itself(folder: Callable[[str], str]) -> None:
    """A folder is copied neither onto nor into itself."""
    source = sharded(f"{folder('local')}/ckpt", SHARDED)
    for target in (source, f"{source}/inner", f"{source}/"):
        with pytest.raises(CheckpointPathError, match="source folder"):
            copy(source, target, overwrite=True)
    assert held(source) == SHARDED


# -- patterns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_patterns(folder: Callable[[str], str], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern stands for files and sharded folders; a name that exists is one, whatever its characters."""
    path = folder(kind)
    fs, inner = fsspec.url_to_fs(path)
    for name in ("a_1.mdl", "a_10.mdl", "b[1].mdl", "b1.mdl", ".a.0123456789abcdef.tmp"):
        fs.pipe_file(f"{inner}/{name}", b"x")
    sharded(f"{path}/a_dir", SHARDED)
    sharded(f"{path}/a_other", {"x.txt": b"x"})
    assert expand_pattern(f"{path}/a_*") == [f"{path}/{name}" for name in ("a_1.mdl", "a_10.mdl", "a_dir")]
    assert expand_pattern(f"{path}/a_?.mdl") == [f"{path}/a_1.mdl"]
    assert expand_pattern(f"{path}/b[1].mdl") is None
    assert expand_pattern(f"{path}/b[12].mdl") == [f"{path}/b1.mdl"]
    assert expand_pattern(f"{path}/a_1.mdl") is None
    with pytest.raises(FileNotFoundError, match="No checkpoint matches"):
        expand_pattern(f"{path}/c*")
    if kind == "local":
        monkeypatch.chdir(path)
        assert expand_pattern("a_?.mdl") == ["a_1.mdl"]
        assert expand_pattern("./a_1*.mdl") == [f"{path}/a_1.mdl", f"{path}/a_10.mdl"]


def test_versions(environment: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path) -> None:
    """A former version can be copied, and not moved."""
    fs.call_s3("put_bucket_versioning", Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    fs.pipe_file(f"{bucket}/x.mdl", b"first")
    version = fs.call_s3("head_object", Bucket=bucket, Key="x.mdl")["VersionId"]
    fs.pipe_file(f"{bucket}/x.mdl", b"second")
    path = f"s3://{bucket}/x.mdl?versionId={version}"
    options = {"version_aware": True}
    (tmp_path / "down").mkdir()
    assert copy(path, tmp_path / "down", source_options=options) == str(tmp_path / "down" / "x.mdl")
    assert (tmp_path / "down" / "x.mdl").read_bytes() == b"first"
    with pytest.raises(CheckpointPathError, match="names one version"):
        move(path, tmp_path / "y.mdl", source_options=options)
