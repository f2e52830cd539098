"""Cerebras checkpoints that were copied or deleted only in part: never treated as complete, and resumed."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cerebras import objects, readable, same, upload
from proxy import Fault, FaultProxy, error_answer, fault_proxy
from roots import left

from fsspec_csx import copy, load, move
from fsspec_csx.cli import main
from fsspec_csx.errors import AccessDeniedError, InvalidCheckpointError
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage import folder_copy, s3
from fsspec_csx.manage.list import checkpoints
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

CASE = "weights_plain"
KEYS = sorted(objects(CASE))


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def url(fs: CSXFileSystem, bucket: str, environment: LocalS3) -> str:
    """A Cerebras checkpoint on S3."""
    return upload(fs, CASE, f"{bucket}/checkpoint_5.mdl")


def killed_at(monkeypatch: pytest.MonkeyPatch, room: Any, name: str, call: int) -> None:
    """Have the process end at so many calls of a function, the first is 1."""
    function: Callable[..., Any] = getattr(room, name)
    lock, count = threading.Lock(), 0

    def until(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        with lock:
            count += 1
            number = count
        if number >= call:
            raise Killed
        return function(*args, **kwargs)

    monkeypatch.setattr(room, name, until)


def seen_unfinished(url: str) -> None:
    """Check that no reader takes it for a checkpoint."""
    for recursive in (False, True):
        assert url not in [found.path for found in checkpoints(os.path.dirname(url), recursive=recursive)]
    with pytest.raises(InvalidCheckpointError, match="not finish"):
        load(url)


# -- delete ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_killed_deletion(url: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any point, it is a checkpoint that was not finished, and the same command deletes the rest."""
    with monkeypatch.context() as patch:
        killed_at(patch, manage_delete, "remove", call)
        with pytest.raises(Killed):
            main(["checkpoint", "delete", url, "--yes"])
    assert left(url) == (["__METADATA__"] if call == 4 else KEYS)
    seen_unfinished(url)
    assert main(["checkpoint", "delete", url, "--yes"]) == 0
    assert left(url) == []


def test_deletion_that_is_refused(url: str, server: LocalS3) -> None:
    """Who may not delete leaves the checkpoint as it was."""
    with fault_proxy(server.endpoint_url) as proxy:
        refuse(proxy, "POST", "delete")
        refuse(proxy, "DELETE")
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        (failed,) = manage_delete.delete(manage_delete.targets([url], storage_options=options)).values()
    assert isinstance(failed, AccessDeniedError)
    assert left(url) == KEYS
    assert len(checkpoints(os.path.dirname(url))) == 1
    assert load(url, keys=readable(CASE)).keys()


def test_deletion_that_is_refused_and_cannot_be_undone(url: str, fs: CSXFileSystem, server: LocalS3) -> None:
    """A checkpoint that can be neither deleted nor restored is reported alone; the others are deleted."""
    other = upload(fs, CASE, f"{url.removeprefix('s3://').rpartition('/')[0]}/checkpoint_6.mdl")
    with fault_proxy(server.endpoint_url) as proxy:
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        to_delete = manage_delete.targets([url, other], storage_options=options)
        refuse(proxy, "POST", "delete")
        refuse(proxy, "DELETE")
        refuse(proxy, "PUT")
        for fault in proxy.faults[1:]:
            fault.when = lambda request: "checkpoint_5" in request.path
        proxy.faults[2].skip = 1  # by the first it becomes one that was not finished
        failed = manage_delete.delete(to_delete)
    assert [*failed] == [url]
    assert isinstance(failed[url], AccessDeniedError)
    assert "PutObject" in str(failed[url])
    assert left(other) == []
    assert left(url) == KEYS
    seen_unfinished(url)
    assert main(["checkpoint", "delete", url, "--yes"]) == 0
    assert left(url) == []


def test_deletion_by_those_who_may_not_write(url: str, server: LocalS3) -> None:
    """Who may delete and not write deletes what makes it a checkpoint first."""
    with fault_proxy(server.endpoint_url) as proxy:
        refuse(proxy, "PUT")
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        assert manage_delete.delete(manage_delete.targets([url], storage_options=options)) == {}
        deletions = [one for one in proxy.requests if one.method in ("DELETE", "POST")]
    assert deletions[0].path.endswith("__METADATA__")
    assert left(url) == []


def refuse(proxy: FaultProxy, method: str, query: str = "") -> None:
    """Have a proxy refuse requests."""
    proxy.faults.append(Fault(method, query, times=1000, answer=error_answer(403, "AccessDenied")))


# -- copy and move -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 3])
def test_killed_copy(url: str, bucket: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that was killed is no checkpoint; the same command resumes it, without --force, or it is deleted."""
    for name in ("a", "b"):
        with monkeypatch.context() as patch:
            patch.setattr(folder_copy, "_AT_A_TIME", 1)
            killed_at(patch, folder_copy, "copy_file", call)
            with pytest.raises(Killed):
                copy(url, f"s3://{bucket}/{name}/x.mdl")
        seen_unfinished(f"s3://{bucket}/{name}/x.mdl")
        assert len(left(f"s3://{bucket}/{name}/x.mdl")) == call  # the metadata is one of them
    copy(url, f"s3://{bucket}/a/x.mdl")
    assert left(f"s3://{bucket}/a/x.mdl") == KEYS
    assert same(load(f"s3://{bucket}/a/x.mdl"), load(url))
    assert main(["checkpoint", "delete", f"s3://{bucket}/b/x.mdl", "--yes"]) == 0
    assert left(f"s3://{bucket}/b") == []


def test_killed_replacement(url: str, fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is replaced by another there is neither."""
    target = upload(fs, "bf16", f"{bucket}/to/x.mdl")
    with monkeypatch.context() as patch:
        killed_at(patch, folder_copy, "copy_file", 2)
        with pytest.raises(Killed):
            copy(url, target, overwrite=True)
    seen_unfinished(target)
    copy(url, target, overwrite=True)
    assert left(target) == KEYS
    assert same(load(target), load(url))


def test_killed_move(url: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move that was killed while the source went leaves a whole copy, and a source that is none any more."""
    with monkeypatch.context() as patch:
        killed_at(patch, manage_delete, "remove", 2)
        with pytest.raises(Killed):
            move(url, f"s3://{bucket}/moved/x.mdl")
    assert len(checkpoints(f"s3://{bucket}/moved")) == 1
    seen_unfinished(url)


def test_strange_objects_stay(url: str, fs: CSXFileSystem, bucket: str) -> None:
    """A folder with other objects of the same names becomes no checkpoint by a copy that they hinder."""
    name = next(key for key in KEYS if key != "__METADATA__")
    fs.pipe_file(f"{bucket}/to/{name}", b"other")
    with pytest.raises(FileExistsError):
        copy(url, f"s3://{bucket}/to")
    assert fs.cat_file(f"{bucket}/to/{name}") == b"other"
    assert not fs.exists(f"{bucket}/to/__METADATA__")


def test_objects_are_copied_side_by_side(url: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small objects wait for no other; one that is large goes by itself."""
    together = threading.Barrier(2)
    carry = folder_copy.copy_file
    seen: list[str] = []
    numbers = itertools.count()

    def meeting(source: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(source.name)
        if next(numbers) < 2:
            together.wait(60)
        return carry(source, *args, **kwargs)

    monkeypatch.setattr(folder_copy, "copy_file", meeting)
    copy(url, f"s3://{bucket}/a.mdl")
    assert seen[-1] == "__METADATA__"
    assert left(f"s3://{bucket}/a.mdl") == KEYS
    monkeypatch.setattr(folder_copy, "_SMALL", -1)
    seen.clear()
    copy(url, f"s3://{bucket}/b.mdl")
    assert seen == sorted(seen, key=lambda name: (name == "__METADATA__", name))


# -- list --------------------------------------------------------------------------------------------------------------


def test_listed_behind_thousands(
    url: str, fs: CSXFileSystem, bucket: str, server: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is found whatever its values are called; a folder of many other objects costs two requests."""
    monkeypatch.setattr(s3, "PAGE", 3)
    for number in range(4):
        fs.pipe_file(f"{bucket}/checkpoint_5.mdl/A{number}", b"x")
        fs.pipe_file(f"{bucket}/other/A{number}", b"x")
    with fault_proxy(server.endpoint_url) as proxy:
        options = {**server.storage_options(), "endpoint_url": proxy.url}
        (found,) = checkpoints(f"s3://{bucket}", storage_options=options)
        listed = [one for one in proxy.made("GET", "list-type=2") if "prefix=other" in one.query]
    assert (found.path, found.files) == (url, len(KEYS) + 4)
    assert len(listed) == 2


def test_no_checkpoint_in_a_checkpoint(url: str, fs: CSXFileSystem, bucket: str) -> None:
    """An object of one with the name of a checkpoint is none itself, be it finished or not."""
    upload(fs, "partial", f"{bucket}/checkpoint_6.mdl")
    for name in ("checkpoint_5.mdl", "checkpoint_6.mdl"):
        fs.pipe_file(f"{bucket}/{name}/inner/x.bin", b"data")
    assert [found.path for found in checkpoints(f"s3://{bucket}", recursive=True)] == [url]
