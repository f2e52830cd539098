"""cszoo checkpoint prune: which checkpoints are kept, and which are deleted."""

from __future__ import annotations

import contextlib
import errno
import http.client
import itertools
import json
import os
from pathlib import Path

import fsspec
import pytest
from commands import DONE, FAILED, USAGE, cszoo, failure
from conftest import recorded_requests
from roots import ODD, fill, left, manifest

from fsspec_csx import save
from fsspec_csx.cli import main
from fsspec_csx.errors import BucketNotFoundError, EndpointError, RejectedCredentialsError
from fsspec_csx.manage.list import ListedCheckpoint, checkpoints
from fsspec_csx.manage.prune import plan, prune
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3, seaweed


def run(*arguments: str) -> int:
    """The exit status of the verb, in this process."""
    return main(["checkpoint", "prune", *arguments])


def found(*steps: int | None) -> list[ListedCheckpoint]:
    """Checkpoints of these steps, in any order."""
    names = [
        f"checkpoint_{step}.mdl" if step is not None else f"notes{number}.mdl" for number, step in enumerate(steps)
    ]
    return [ListedCheckpoint(f"/run/{name}", step, None, 1, 1, False) for name, step in zip(names, steps, strict=True)]


def steps(kept: list[ListedCheckpoint]) -> list[int | None]:
    """Their steps."""
    return [each.step for each in kept]


@pytest.mark.parametrize(
    ("keep", "every", "kept"),
    [
        (1, None, [50]),
        (2, None, [40, 50]),
        (5, None, [10, 20, 30, 40, 50]),
        (9, None, [10, 20, 30, 40, 50]),
        (1, 20, [20, 40, 50]),
        (2, 50, [40, 50]),
        (1, 1, [10, 20, 30, 40, 50]),
        (1, 7, [50]),
    ],
)
def test_plan(keep: int, every: int | None, kept: list[int]) -> None:
    """The newest are kept, and those whose step is a multiple; in whichever order they are given."""
    for given in itertools.islice(itertools.permutations(found(10, 20, 30, 40, 50)), 0, 120, 17):
        planned = plan(given, keep, every)
        assert steps(planned.kept) == kept
        assert steps(planned.to_delete) == [step for step in (10, 20, 30, 40, 50) if step not in kept]


def test_plan_always_keeps_the_newest() -> None:
    """Whatever the options, the newest stays, and nothing is both kept and deleted."""
    for count, keep, every in itertools.product(range(5), range(1, 4), (None, 1, 2, 3)):
        given = found(*range(count))
        planned = plan(given, keep, every)
        assert sorted(steps([*planned.kept, *planned.to_delete])) == [*range(count)]
        assert steps(planned.kept)[-1:] == [*range(count)][-1:]
        assert len(planned.kept) >= min(keep, count)


def test_plan_without_step() -> None:
    """What says no step stays, and does not count."""
    planned = plan(found(None, 1, None, 2), 1)
    assert (steps(planned.kept), steps(planned.to_delete)) == ([None, None, 2], [1])


def test_plan_damaged() -> None:
    """What is damaged stays, and does not count; those that do not matter are not looked at."""
    seen: list[int | None] = []

    def damage_of(each: ListedCheckpoint) -> Exception | None:
        seen.append(each.step)
        return ValueError("damaged") if each.step == 4 else None

    planned = plan(found(1, 2, 3, 4), 2, damage_of=damage_of)
    assert (steps(planned.kept), steps(planned.to_delete)) == ([2, 3, 4], [1])
    assert seen == [4, 3, 2]
    assert len(planned.damaged) == 1


@pytest.mark.parametrize(("keep", "every"), [(0, None), (-1, None), (1, 0), (1, -5)])
def test_plan_of_nothing(keep: int, every: int | None) -> None:
    """To keep none is refused."""
    with pytest.raises(ValueError, match="too few"):
        plan(found(1, 2), keep, every)


def test_prune(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run, or a run without a terminal, deletes nothing; --yes deletes what was shown, and nothing else."""
    for step in (100, 200, 300, 1000):
        save([step], f"{root}/run/checkpoint_{step}.mdl")
    others = ["run/last.mdl", "run/notes_100.txt", "run/sub/checkpoint_1.mdl", "run0/checkpoint_1.mdl"]
    fill(root, *others, *ODD)
    before = left(root)
    assert run(f"{root}/run", "--keep", "1", "--keep-every", "200", "--dry-run", "--yes") == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["keep", "keep", "keep", "delete", "delete"]
    assert lines[5] == f"{root}/run/last.mdl is kept and does not count: its name has no step."
    assert lines[6].startswith("2 checkpoints, ")
    assert lines[6].endswith("would be deleted: pass --yes to delete.")
    assert left(root) == before
    assert run(f"{root}/run", "--keep", "1", "--keep-every", "200") == FAILED
    assert "--dry-run" in capsys.readouterr().err
    assert left(root) == before
    assert run(f"{root}/run", "--keep", "1", "--keep-every", "200", "--yes", "--quiet") == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [(line.split()[0], line.rpartition("/")[2]) for line in lines] == [
        ("keep", "last.mdl"),
        ("keep", "checkpoint_200.mdl"),
        ("keep", "checkpoint_1000.mdl"),
        ("deleted", "checkpoint_100.mdl"),
        ("deleted", "checkpoint_300.mdl"),
    ]
    gone = {"run/checkpoint_100.mdl", "run/checkpoint_300.mdl"}
    assert left(root) == sorted({*before} - gone)
    assert run(f"{root}/run", "--keep", "2", "--yes") == DONE
    assert capsys.readouterr().out.endswith("There is nothing to delete.\n")


def test_sharded(root: str) -> None:
    """A folder with a manifest is kept or deleted as one; one without is neither."""
    for step in (1, 2, 3):
        fill(root, f"checkpoint_{step}/__0_0.distcp")
        fill(root, f"checkpoint_{step}/.metadata", data=manifest("__0_0.distcp"))
    fill(root, "checkpoint_4/__0_0.distcp")
    assert run(root, "--keep", "1", "-y") == DONE
    assert left(root) == ["checkpoint_3/.metadata", "checkpoint_3/__0_0.distcp", "checkpoint_4/__0_0.distcp"]


def test_file_and_folder_of_one_name(bucket: str, environment: LocalS3) -> None:
    """On S3 both may have the name of a checkpoint, and both are deleted."""
    root = f"s3://{bucket}"
    for step in (1, 2):
        save([step], f"{root}/checkpoint_{step}.mdl")
        fill(root, f"checkpoint_{step}.mdl/__0_0.distcp")
        fill(root, f"checkpoint_{step}.mdl/.metadata", data=manifest("__0_0.distcp"))
    assert run(root, "--keep", "1", "-y") == DONE
    assert [each.path for each in checkpoints(root)] == [f"{root}/checkpoint_2.mdl"] * 2
    assert not [name for name in left(root) if "checkpoint_1" in name]


def test_folders_side_by_side(bucket: str, environment: LocalS3, fs: CSXFileSystem) -> None:
    """Folders take a request each to be listed again, and their files go a thousand by a request."""
    files = [f"{bucket}/checkpoint_{step}/{name}" for step in range(50) for name in (".metadata", "__0_0.distcp")]
    fs.pipe({file: manifest("__0_0.distcp") if file.endswith(".metadata") else b"data" for file in files})
    with recorded_requests() as requests:
        done = prune(f"s3://{bucket}", 1)
    assert (len(done.to_delete), done.failed) == (49, {})
    assert (requests.count("ListObjectsV2"), requests.count("DeleteObjects")) == (1 + 50 + 1 + 49, 2)
    assert (requests.count("HeadObject"), requests.count("GetObject")) == (1, 1)  # the manifest of the newest
    assert {*requests} == {"ListObjectsV2", "DeleteObjects", "HeadObject", "GetObject"}


def test_damaged(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A newest one that is not whole stays, is named, and does not count."""
    for step in (1, 2, 3, 4, 5):
        save([step], f"{root}/checkpoint_{step}.mdl")
    for step in (3, 5):
        fs, path = fsspec.url_to_fs(f"{root}/checkpoint_{step}.mdl")
        fs.pipe_file(path, fs.cat_file(path)[:-100])
    assert run(root, "--keep", "2", "--yes", "--json") == DONE
    report = json.loads(capsys.readouterr().out)
    assert [*report["damaged"]] == [f"{root}/checkpoint_5.mdl", f"{root}/checkpoint_3.mdl"]
    assert [each["step"] for each in report["kept"]] == [2, 3, 4, 5]
    assert [each["step"] for each in report["to_delete"]] == [1]
    assert (report["dry_run"], report["failed"]) == (False, {})
    assert left(root) == [f"checkpoint_{step}.mdl" for step in (2, 3, 4, 5)]
    fs, path = fsspec.url_to_fs(f"{root}/checkpoint_1.mdl")
    fill(root, "checkpoint_1.mdl")
    assert run(root, "--keep", "2", "--yes") == DONE
    assert f"{root}/checkpoint_5.mdl is damaged and does not count: " in capsys.readouterr().out
    assert not fs.exists(path)


def test_none_whole(root: str) -> None:
    """Where none is whole nothing goes."""
    fill(root, *(f"checkpoint_{step}.mdl" for step in range(5)))
    done = prune(root, 1)
    assert (len(done.kept), done.to_delete, len(done.damaged)) == (5, [], 5)
    assert len(left(root)) == 5


def test_unsafe_is_whole(tmp_path: Path) -> None:
    """One that would run code when it is loaded is whole; it is not run."""
    import torch

    class Runs:
        def __reduce__(self) -> object:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(Runs(), tmp_path / "checkpoint_2.mdl")
    save([1], tmp_path / "checkpoint_1.mdl")
    done = prune(tmp_path, 1)
    assert (steps(done.to_delete), done.damaged, done.failed) == ([1], {}, {})
    assert left(str(tmp_path)) == ["checkpoint_2.mdl"]


@pytest.mark.slow
def test_thousands(bucket: str, environment: LocalS3) -> None:
    """Thousands of checkpoints are listed and deleted a thousand by a request."""
    root = f"s3://{bucket}/run"
    # By the server's own protocol they are there sooner than by that of S3.
    with contextlib.closing(http.client.HTTPConnection(seaweed.HOST, environment._ports["filer"][0])) as server:
        for step in range(2497):
            server.request("PUT", f"/buckets/{bucket}/run/checkpoint_{step}.mdl", b"data")
            assert server.getresponse().read()
    for step in (2497, 2498, 2499):
        save([step], f"{root}/checkpoint_{step}.mdl")
    with recorded_requests() as requests:
        listed = checkpoints(root)
    assert steps(listed) == [*range(2500)]
    assert requests == ["ListObjectsV2"] * 3
    with recorded_requests() as requests:
        done = prune(root, 3)
    assert (len(done.to_delete), done.failed) == (2497, {})
    assert requests.count("ListObjectsV2") == requests.count("DeleteObjects") == 3
    assert left(root) == [f"checkpoint_{step}.mdl" for step in (2497, 2498, 2499)]


def test_failed(server: LocalS3, bucket: str, aws_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that cannot be deleted are named, the others are deleted, and the exit status says so."""
    root = f"s3://{bucket}"
    reader = server.storage_options("reader")
    (aws_files / "credentials").write_text(
        f"[read]\naws_access_key_id = {reader['key']}\naws_secret_access_key = {reader['secret']}\n"
    )
    asked = [root, "--keep", "1", "-p", "read", "--endpoint-url", server.endpoint_url]
    for step in (1, 2, 3):
        save([step], f"{root}/checkpoint_{step}.mdl", storage_options=server.storage_options())
    assert run(*asked, "--dry-run") == DONE
    capsys.readouterr()
    assert run(*asked, "--yes") == FAILED
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[:3]] == ["keep", "failed", "failed"]
    cause, remedy = printed.err.splitlines()
    assert f"({root}/checkpoint_1.mdl, {root}/checkpoint_2.mdl)" in cause
    assert remedy.startswith("Ask for the right")
    assert len(left(root, **server.storage_options())) == 3


def test_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that cannot be deleted does not keep the next from it."""
    for step in (1, 2, 3, 4):
        save([step], tmp_path / f"checkpoint_{step}.mdl")
    unlink = os.unlink

    def refusing(path: str) -> None:  # who runs the tests may be root, whom nothing is refused to
        if path.endswith("checkpoint_2.mdl"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", refusing)
    done = prune(tmp_path, 1)
    assert steps(done.to_delete) == [1, 2, 3]
    assert [*done.failed] == [f"{tmp_path}/checkpoint_2.mdl"]
    assert left(str(tmp_path)) == ["checkpoint_2.mdl", "checkpoint_4.mdl"]


def test_name_that_no_path_can_have(bucket: str, environment: LocalS3) -> None:
    """An object whose name would chain URLs is reported as one that is left."""
    fill(f"s3://{bucket}", "a::step_1.mdl", "a::step_2.mdl")
    done = prune(f"s3://{bucket}", 1)
    assert [*done.failed] == [f"s3://{bucket}/a::step_1.mdl"]
    assert left(f"s3://{bucket}") == ["a::step_1.mdl", "a::step_2.mdl"]


@pytest.mark.slow
def test_refusals(server: LocalS3, bucket: str) -> None:
    """A wrong secret, a missing bucket and an endpoint that is down are reported as such."""
    store = server.storage_options()
    with pytest.raises(RejectedCredentialsError):
        prune(f"s3://{bucket}", 1, storage_options={**store, "secret": "wrong"})
    with pytest.raises(BucketNotFoundError):
        prune(f"s3://{bucket}-missing", 1, storage_options=store)
    with pytest.raises(EndpointError):
        prune(f"s3://{bucket}", 1, storage_options={**store, "endpoint_url": "http://127.0.0.1:9"})


@pytest.mark.parametrize("arguments", [[], ["--keep", "0"], ["--keep", "x"], ["--keep=1", "--keep-every=0"]])
def test_usage(arguments: list[str], tmp_path: Path) -> None:
    """To keep less than one is wrong usage."""
    with pytest.raises(SystemExit) as ended:
        run(str(tmp_path), *arguments)
    assert ended.value.code == USAGE


@pytest.mark.slow
def test_command(environment: LocalS3, bucket: str) -> None:
    """The command in a process."""
    for step in (1, 2):
        save([step], f"s3://{bucket}/run/checkpoint_{step}.mdl")
    done = cszoo("prune", f"s3://{bucket}/run", "--keep", "1", "--yes")
    assert (done.returncode, done.stderr) == (DONE, "")
    assert done.stdout.splitlines()[-1].startswith("Deleted 1 checkpoint")
    assert left(f"s3://{bucket}") == ["run/checkpoint_2.mdl"]
    cause, _ = failure(cszoo("prune", f"s3://{bucket}/missing", "--keep", "1"))
    assert f"s3://{bucket}/missing" in cause
