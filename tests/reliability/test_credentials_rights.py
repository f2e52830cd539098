"""Rights on a part of a bucket: within it everything works, outside it is refused, and nothing is half done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

import fsspec_csx
from fsspec_csx.cli import main
from fsspec_csx.errors import AccessDeniedError
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import Identity, LocalS3

BUCKET = "shared"
MINE, OTHERS = f"s3://{BUCKET}/mine", f"s3://{BUCKET}/others"
STATE = {"w": torch.arange(1000)}
LARGE = {"w": torch.zeros(9 * 2**20, dtype=torch.uint8)}
DONE, FAILED = 0, 3


@pytest.fixture(scope="module")
def store() -> Iterator[LocalS3]:
    """A server with someone who may do all, and others with rights on what begins with ``mine/`` alone."""
    every = [f"{action}:{BUCKET}/mine/*" for action in ("Read", "Write", "List", "Tagging")]
    identities = [
        Identity.full("admin"),
        Identity("member", tuple(every)),
        Identity("unlisting", tuple(each for each in every if not each.startswith("List"))),
        Identity("reader", (f"Read:{BUCKET}/mine/*", f"List:{BUCKET}/mine/*")),
    ]
    with LocalS3(identities=identities) as running:
        yield running


@pytest.fixture
def admin(store: LocalS3) -> CSXFileSystem:
    """A filesystem that may do all, with a checkpoint inside and one outside of what the others may use."""
    made = fsspec.filesystem("s3", **store.storage_options(), use_listings_cache=False)
    assert isinstance(made, CSXFileSystem)
    made.makedirs(BUCKET, exist_ok=True)
    if left := made.find(BUCKET):
        made.rm(left)
    for number in (1, 2):
        for folder in (MINE, OTHERS):
            path = f"{folder}/checkpoint_{number}.mdl"
            fsspec_csx.save(STATE, path, storage_options=store.storage_options())
    return made


def become(store: LocalS3, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the environment be that of someone."""
    for variable, value in store.environment(name).items():
        monkeypatch.setenv(variable, value)


def state_of(admin: CSXFileSystem) -> dict[str, object]:
    """All objects, by their ETags, and the unfinished uploads."""
    objects = {path: info["ETag"] for path, info in admin.find(BUCKET, detail=True).items()}
    return {**objects, "uploads": len(admin.list_multipart_uploads(BUCKET))}


@pytest.mark.parametrize("name", ["member", "unlisting"])
def test_within(
    store: LocalS3, admin: CSXFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Save, load, copy, move and delete need rights on their own objects alone, and none to list."""
    become(store, monkeypatch, name)
    for state in (STATE, LARGE):
        fsspec_csx.save(state, f"{MINE}/new.mdl")
        assert torch.equal(fsspec_csx.load(f"{MINE}/new.mdl")["w"], state["w"])
    local = str(tmp_path / "local.mdl")
    for arguments in (
        ("info", f"{MINE}/new.mdl"),
        ("copy", f"{MINE}/new.mdl", local),
        ("copy", "--force", local, f"{MINE}/back.mdl"),
        ("copy", "--force", f"{MINE}/new.mdl", f"{MINE}/copy.mdl"),
        ("verify", f"{MINE}/copy.mdl"),
    ):
        assert main(["checkpoint", *arguments]) == DONE, arguments
    assert torch.equal(fsspec_csx.load(f"{MINE}/copy.mdl")["w"], LARGE["w"])


def test_member_manages_a_folder(
    store: LocalS3, admin: CSXFileSystem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the right to list a folder its checkpoints can be listed, pruned, moved, deleted and cleaned up."""
    become(store, monkeypatch, "member")
    assert main(["checkpoint", "list", MINE, "--json"]) == DONE
    listed = json.loads(capsys.readouterr().out)
    assert "checkpoint_2.mdl" in str(listed)
    assert "others" not in str(listed)
    assert main(["checkpoint", "prune", MINE, "--keep", "1", "--yes"]) == DONE
    assert main(["checkpoint", "move", f"{MINE}/checkpoint_2.mdl", f"{MINE}/moved.mdl"]) == DONE
    assert list(admin.find(f"{BUCKET}/mine")) == [f"{BUCKET}/mine/moved.mdl"]
    assert main(["checkpoint", "delete", f"{MINE}/moved.mdl", "--yes"]) == DONE
    assert not admin.exists(f"{BUCKET}/mine/moved.mdl")
    assert len(admin.find(f"{BUCKET}/others")) == 2


@pytest.mark.parametrize("name", ["member", "unlisting", "reader"])
def test_outside(
    store: LocalS3, admin: CSXFileSystem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Another user's objects are refused by name, whatever the operation, and stay unchanged."""
    become(store, monkeypatch, name)
    before = state_of(admin)
    path = f"{OTHERS}/checkpoint_1.mdl"
    for state in (STATE, LARGE):
        with pytest.raises(AccessDeniedError, match=path):
            fsspec_csx.save(state, path)
    with pytest.raises(AccessDeniedError, match=path):
        fsspec_csx.load(path)
    for arguments in (
        ("info", path),
        ("verify", path),
        ("list", OTHERS),
        ("copy", path, f"{MINE}/stolen.mdl"),
        ("copy", "--force", f"{MINE}/checkpoint_1.mdl", path),
        ("move", "--force", f"{MINE}/checkpoint_1.mdl", path),
        ("delete", path, "--yes"),
        ("prune", OTHERS, "--keep", "1", "--yes"),
    ):
        assert main(["checkpoint", *arguments]) == FAILED, arguments
        report = capsys.readouterr().err
        assert "refused" in report, (arguments, report)
        assert f"s3://{BUCKET}" in report, (arguments, report)
    assert state_of(admin) == before


def test_reader(
    store: LocalS3,
    admin: CSXFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Who may only read loads and copies away; every change is refused by the object's name, and changes nothing."""
    become(store, monkeypatch, "reader")
    before = state_of(admin)
    path = f"{MINE}/checkpoint_1.mdl"
    assert torch.equal(fsspec_csx.load(path)["w"], STATE["w"])
    assert main(["checkpoint", "copy", path, str(tmp_path / "local.mdl")]) == DONE
    for state in (STATE, LARGE):
        with pytest.raises(AccessDeniedError, match=path):
            fsspec_csx.save(state, path)
    capsys.readouterr()
    for arguments in (
        ("copy", str(tmp_path / "local.mdl"), f"{MINE}/new.mdl"),
        ("copy", path, f"{MINE}/new.mdl"),
        ("move", path, str(tmp_path / "moved.mdl")),
        ("move", path, f"{MINE}/new.mdl"),
        ("delete", path, "--yes"),
        ("prune", MINE, "--keep", "1", "--yes"),
        ("convert", path, f"{MINE}/new.safetensors"),
    ):
        assert main(["checkpoint", *arguments]) == FAILED, arguments
        report = capsys.readouterr().err
        assert "refused" in report or "not deleted" in report or "Access Denied" in report, (arguments, report)
    assert state_of(admin) == before


def test_doctor_tells_the_rights(
    store: LocalS3, admin: CSXFileSystem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Doctor finds all well within, and outside names the right that is missing for each thing."""
    become(store, monkeypatch, "member")
    assert main(["checkpoint", "doctor", MINE, "--no-speed"]) == DONE
    capsys.readouterr()
    become(store, monkeypatch, "reader")
    assert main(["checkpoint", "doctor", MINE, "--no-speed", "--json"]) == FAILED
    checks = {each["name"]: each for each in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["write"]["ok"] is False
    assert "s3:PutObject" in str(checks["write"])
    assert checks["read"]["ok"]
    assert checks["list"]["ok"]
