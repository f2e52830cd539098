"""A full disk or server: a clear error, the old checkpoint stays complete, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.callbacks import Callback
from proxy import Fault, FaultProxy, error_answer, fault_proxy
from stage import blob, save_small
from training import loader, made
from victims import CleanProcess, state

from fsspec_csx import async_save, copy, distributed, load, move, save
from fsspec_csx.errors import NoSpaceError
from fsspec_csx.manage.convert import convert
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

Reports = dict[str, Any]
OPERATIONS = [
    "save",
    "safetensors",
    "async_save",
    "distributed",
    "copy",
    "move",
    "convert",
    "get",
    "get_resumable",
    "get_new",
]
COMMANDS = ["copy", "move", "convert"]


@pytest.fixture(scope="module", params=["disk", "limit"])
def reports(request: pytest.FixtureRequest, server: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """What a process reports that works on a small disk, or may write no large files."""
    folder = tmp_path_factory.mktemp("disk")
    remote = f"s3://space-{uuid.uuid4().hex[:8]}/x.mdl"
    fs, path = fsspec.url_to_fs(remote, **server.storage_options())
    sources = [path.replace("x.mdl", name) for name in ("x.mdl", "move.mdl", "protected.mdl")]
    for source in sources:
        fs.pipe_file(source, blob(2))
    environment = {**server.environment(), "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    with CleanProcess() as clean:
        status, said = clean.run("disks:errors_as_data", request.param, str(folder), remote, environment=environment)
    assert not status, said
    report = json.loads(said)
    if "impossible" in report:
        pytest.skip(f"a process may have no disk of its own here: {report['impossible']}")
    return {**report, "kind": request.param, "sources": [*map(fs.exists, sources)]}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_room(reports: Reports, operation: str) -> None:
    """An operation that does not fit says so, changes nothing and leaves nothing; where there is room it works."""
    report = reports[operation]
    expected = errno.ENOSPC if reports["kind"] == "disk" else errno.EFBIG
    if operation in COMMANDS:
        cause, remedy = report["error"]["text"].splitlines()
        assert "No space left on device." in cause or "File too large." in cause
        assert remedy.startswith(("Free some space", "Raise the limit"))
    else:
        assert report["error"]["number"] == errno.errorcode[expected]
        cause = report["error"]["text"]
    assert f"/{operation}" in cause  # where there is no room
    assert report["left"] == ["x.mdl"]
    assert report["former"] == 1
    assert report["again"] is None
    assert "x.mdl" in report["left_then"]
    assert not any(name.endswith(".tmp") for name in report["left_then"])


def test_move_that_had_no_room(reports: Reports) -> None:
    """The source of a move is gone only when there was room for it."""
    assert reports["move"]["left_then"] == ["x.mdl", "y.mdl"]
    assert reports["sources"] == [True, False, True]


def test_training_without_room(reports: Reports) -> None:
    """A training whose folder becomes full ends with that error; the checkpoint before is there, and nothing else."""
    report = reports["train"]
    assert report["error"]["number"] in ("ENOSPC", "EFBIG")
    assert report["left"] == ["checkpoint_2.mdl", "x.mdl"]


@pytest.mark.parametrize("operation", [*OPERATIONS, "train"])
def test_protected_disk(reports: Reports, operation: str) -> None:
    """Where nothing may be written, that is reported, and all stays."""
    if reports["kind"] == "limit":
        pytest.skip("there is no disk that could be protected")
    report = reports[operation]["protected"]
    if operation in COMMANDS:
        cause, remedy = report["error"]["text"].splitlines()
        assert "Read-only file system." in cause
        assert "writable" in remedy
    else:
        assert report["error"]["number"] == "EROFS"
    assert operation == "train" or ".tmp" not in report["error"]["text"]  # which writes a file for that purpose
    assert (report["left"], report["former"]) == (["x.mdl"], 1)


def test_no_inodes(server: LocalS3, tmp_path: Path) -> None:
    """A disk that may have no further file is full; the error names the folder, and not the temporary file."""
    remote = f"s3://space-{uuid.uuid4().hex[:8]}/x.mdl"
    fs, path = fsspec.url_to_fs(remote, **server.storage_options())
    fs.pipe_file(path, blob(2))
    with CleanProcess() as clean:
        status, said = clean.run("disks:errors_without_inodes", str(tmp_path), remote, environment=server.environment())
    assert not status, said
    report = json.loads(said)
    if "impossible" in report:
        pytest.skip(f"a process may have no disk of its own here: {report['impossible']}")
    expected = {"number": "ENOSPC", "text": f"[Errno {errno.ENOSPC}] No space left on device: {str(tmp_path)!r}"}
    assert report == dict.fromkeys(("save", "get", "get_resumable"), expected)


# -- a folder that goes away -------------------------------------------------------------------------------------------


class Removing(Callback):  # type: ignore[misc]
    """Removes a folder when something has moved."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        shutil.rmtree(self.folder, ignore_errors=True)


AWAY: dict[str, Callable[[str, str, Callback], object]] = {
    "save": lambda source, target, callback: save(state(2), target, callback=callback),
    "async_save": lambda source, target, callback: async_save(state(2), target, callback=callback).result(),
    "copy": lambda source, target, callback: copy(source, target, callback=callback),
    "move": lambda source, target, callback: move(source, target, callback=callback),
    "convert": lambda source, target, callback: convert(source, target, dtype="bfloat16", callback=callback),
}


@pytest.mark.parametrize("operation", AWAY)
def test_folder_goes_away(environment: LocalS3, fs: CSXFileSystem, bucket: str, tmp_path: Path, operation: str) -> None:
    """A folder that is removed while it is written to is an error, not a checkpoint that is nowhere."""
    fs.pipe_file(f"{bucket}/x.mdl", blob(2))
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="run"):
        AWAY[operation](f"s3://{bucket}/x.mdl", f"{folder}/x.mdl", Removing(folder))
    assert not folder.exists()
    assert fs.cat_file(f"{bucket}/x.mdl") == blob(2)
    save(state(3, 3), f"{folder}/x.mdl")
    assert load(f"{folder}/x.mdl")["step"] == 3


# -- the server --------------------------------------------------------------------------------------------------------

REFUSALS = {
    "full": (507, "XMinioStorageFull"),
    "quota": (403, "QuotaExceeded"),
    "bucket quota": (400, "XMinioAdminBucketQuotaExceeded"),
    "no reason": (507, ""),
}


@pytest.fixture
def proxy(server: LocalS3, environment: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the endpoint of the environment."""
    with fault_proxy(server.endpoint_url) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running


def refusing(refusal: str) -> Fault:
    """The server has no room for a second part, however often it comes."""
    status, code = REFUSALS[refusal]
    answer = error_answer(status, code) if code else (status, {}, b"")
    return Fault("PUT", query="partNumber=2&", times=99, answer=answer)


def train(source: str, target: str) -> None:
    """A training whose checkpoints are large."""
    from training import Model

    class Large(Model):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("large", state(2)["large"])

    trainer, _ = made(target.rpartition("/")[0], model=Large, loop={"max_steps": 2, "eval_frequency": 0})
    trainer.fit(loader())


FULL: dict[str, Callable[[str, str], object]] = {
    "save": lambda source, target: save(state(2), target),
    "async_save": lambda source, target: async_save(state(2), target).result(),
    "copy": lambda source, target: copy(source, target, overwrite=True),
    "move": lambda source, target: move(source, target, overwrite=True),
    "convert": lambda source, target: convert(source, target, dtype="bfloat16", overwrite=True),
    "distributed": lambda source, target: distributed.save(state(2), target.replace("x.mdl", "d")),
    "train": train,
}


@pytest.mark.parametrize(
    ("operation", "refusal"), [*((name, "full") for name in FULL), *(("save", r) for r in REFUSALS)]
)
def test_server_without_room(
    proxy: FaultProxy, fs: CSXFileSystem, bucket: str, tmp_path: Path, operation: str, refusal: str
) -> None:
    """A server that is full halfway is an error of two sentences; what was there is whole, and nothing is left."""
    source = tmp_path / "y.mdl"
    source.write_bytes(blob(2))
    fs.pipe_file(f"{bucket}/run/x.mdl", save_small())
    proxy.faults = [refusing(refusal)]
    with pytest.raises(NoSpaceError, match="no space for s3://") as caught:
        FULL[operation](str(source), f"s3://{bucket}/run/x.mdl")
    assert isinstance(caught.value, OSError)
    assert bucket in str(caught.value)
    assert proxy.faults[0].times == 98  # there is no further request
    assert fs.cat_file(f"{bucket}/run/x.mdl") == save_small()
    assert [name for name in fs.find(bucket) if not name.endswith("/run")] == [f"{bucket}/run/x.mdl"]
    assert fs.list_multipart_uploads(bucket) == []
    assert source.read_bytes() == blob(2)


def test_server_that_fails(proxy: FaultProxy, fs: CSXFileSystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that only says that it fails, as some do when they are full, leaves as much."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    fs.pipe_file(f"{bucket}/x.mdl", save_small())
    proxy.faults = [Fault("PUT", query="partNumber=2&", times=99, answer=error_answer(500, "InternalError"))]
    with pytest.raises(OSError, match="InternalError"):
        save(state(2), f"s3://{bucket}/x.mdl")
    assert fs.cat_file(f"{bucket}/x.mdl") == save_small()
    assert fs.list_multipart_uploads(bucket) == []
