"""distributed.async_save saves the state dict as it was at the call, in one process and in many."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import sys
import threading
import time
import warnings
from concurrent import futures
from pathlib import Path
from typing import Any

import distributed_job
import pytest
import torch
import torch.distributed.checkpoint as dcp
from fsspec.callbacks import Callback

import fsspec_csx
from fsspec_csx import distributed
from fsspec_csx.distributed import StorageWriter
from fsspec_csx.distributed.storage_writer import copy_state_dict
from fsspec_csx.errors import CheckpointPathError
from fsspec_csx.tensors import snapshot
from fsspec_csx.testing import LocalS3

SECONDS = 250  # a busy machine may need many


class Holding(Callback):  # type: ignore[misc]
    """Holds a save up when bytes have moved, until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.opened = threading.Event(), threading.Event()

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self.reached.set()
        assert self.opened.wait(SECONDS)

    def __enter__(self) -> Holding:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.set()


class Stateful:
    """What has a state dict of its own."""

    def __init__(self, value: float) -> None:
        self.tensor = torch.full((3,), float(value))

    def state_dict(self) -> dict[str, Any]:
        return {"own": self.tensor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tensor = state_dict["own"]


def state(value: float) -> dict[str, Any]:
    """Large and tied tensors, values in lists, and an object with a state dict."""
    large = torch.full((2**19,), float(value))
    parameter = torch.nn.Parameter(torch.full((4, 4), float(value)))
    return {
        "a": large,
        "tied": large,
        "view": large[::2],
        "p": parameter,
        "n": [value, {"x": value}],
        "s": Stateful(value),
    }


def change(given: dict[str, Any]) -> None:
    """Change all of it in place."""
    with torch.no_grad():
        for each in (given["a"], given["p"], given["s"].tensor):
            each.fill_(-1)
    given["n"][0] = given["n"][1]["x"] = -1


def check(path: str, value: float) -> None:
    """The checkpoint holds the state of this value alone."""
    found = distributed.whole(path)
    assert found["n"] == [value, {"x": value}]
    tensors = (found["a"], found["tied"], found["view"], found["p"], found["s"]["own"])
    assert [each.unique().tolist() for each in tensors] == [[value]] * 5
    assert found["view"].shape == (2**18,)


def test_state_of_the_call(root: str) -> None:
    """What happens after the call is not saved; the former checkpoint stays whole meanwhile, and no warning comes."""
    distributed.save(state(0), f"{root}/a")
    given = state(1)
    with warnings.catch_warnings(), Holding() as holding:
        warnings.simplefilter("error")
        saving = distributed.async_save(given, f"{root}/a", callback=holding)
        change(given)
        assert holding.reached.wait(SECONDS)
        check(f"{root}/a", 0)
    saving.result(SECONDS)
    assert saving.bytes_written == saving.bytes_total > 2**21
    check(f"{root}/a", 1)
    assert distributed.leftovers(f"{root}/a") == []


def test_saves_run_one_after_the_other(root: str) -> None:
    """Saves do not mix: each has the values of its call, and the last one stays; the memory is used again."""
    fsspec_csx.release_buffers()
    given = state(1)
    with Holding() as holding:
        first = distributed.async_save(given, f"{root}/a", callback=holding)
        assert holding.reached.wait(SECONDS)
        change(given)
        others = [distributed.async_save(state(number), f"{root}/{name}") for number, name in ((2, "a"), (3, "b"))]
        assert not futures.wait(others, 0.1).done
    for each in (first, *others):
        each.result(SECONDS)
    check(f"{root}/a", 2)
    check(f"{root}/b", 3)
    assert distributed.leftovers(f"{root}/a") == []
    assert 1 <= len(snapshot._buffers._free) <= 2


def test_cancelled(root: str) -> None:
    """A cancelled save leaves the old checkpoint and nothing else, before it has begun and while it runs."""
    distributed.save(state(0), f"{root}/a")
    with Holding() as holding:
        running = distributed.async_save(state(1), f"{root}/a", callback=holding)
        assert holding.reached.wait(SECONDS)
        waiting = distributed.async_save(state(2), f"{root}/a")
        assert running.cancel()
        assert waiting.cancel()
    for each in (running, waiting):
        with pytest.raises(futures.CancelledError):
            each.result(SECONDS)
        assert each.cancelled()
    check(f"{root}/a", 0)
    assert distributed.leftovers(f"{root}/a") == []
    saved = distributed.async_save(state(3), f"{root}/a")
    saved.result(SECONDS)
    assert not saved.cancel()


def test_failures(root: str) -> None:
    """What cannot be copied or saved fails the save; a wrong path is refused at once; the old checkpoint stays."""
    distributed.save(state(0), f"{root}/a")
    for wrong, error in (
        ({"x": torch.eye(3).to_sparse()}, ValueError),
        ({"x": threading.Lock()}, TypeError),
        ({"x": torch.ones(3), "y": lambda: None}, (TypeError, ValueError)),
    ):
        with pytest.raises(error):
            distributed.async_save(wrong, f"{root}/a").result(SECONDS)
    with pytest.raises(FileExistsError):
        distributed.async_save(state(1), f"{root}/a", overwrite=False).result(SECONDS)
    with pytest.raises(CheckpointPathError):
        distributed.async_save(state(1), "s3://bucket")
    with pytest.raises(TypeError, match="dict"):
        distributed.async_save([1], f"{root}/a")  # type: ignore[arg-type]
    check(f"{root}/a", 0)
    assert distributed.leftovers(f"{root}/a") == []


def test_torch_takes_our_stager(root: str) -> None:
    """dcp.async_save copies by the writer's stage, into memory of earlier copies."""
    fsspec_csx.release_buffers()
    given = state(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about a single process
        saving: Any = dcp.async_save(given, storage_writer=StorageWriter(f"{root}/a"))
        change(given)
        saving.result(SECONDS)
    check(f"{root}/a", 1)
    del saving
    deadline = time.monotonic() + SECONDS
    while not snapshot._buffers._free:  # torch's thread lets go of it when it ends
        assert time.monotonic() < deadline
        gc.collect()


def test_stage_keeps_ties() -> None:
    """A staged state dict has no memory of the original, and the same ties."""
    given = state(1)
    staged = copy_state_dict(given)
    change(given)
    assert staged["a"] is staged["tied"]
    assert staged["view"].untyped_storage().data_ptr() == staged["a"].untyped_storage().data_ptr()
    assert staged["p"].sum() == 16
    assert staged["n"] == [1, {"x": 1}]
    assert staged["s"]["own"].tolist() == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs gloo")
def test_many_processes(bucket: str, environment: object) -> None:
    """Each process saves the parts that it had at the call; what fails or is cancelled in one, is so in all."""
    done = distributed_job.run("background", f"s3://{bucket}/run", 2)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs gloo")
def test_process_of_torch(server: LocalS3, bucket: str, aws_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's process for saves gets the writer with the profile of the call."""
    admin = server.identity
    lines = f"aws_access_key_id={admin.access_key}\naws_secret_access_key={admin.secret_key}\n"
    (aws_files / "credentials").write_text(f"[mine]\n{lines}")
    (aws_files / "config").write_text(f"[profile mine]\nendpoint_url={server.endpoint_url}\n")
    monkeypatch.setenv("JOB_PROFILE", "mine")
    monkeypatch.setenv("DCP_USE_PREFIX_STORE", "1")  # else it takes a port that was free long before
    done = distributed_job.run("daemon", f"s3://{bucket}/run", 2)
    assert done.returncode == 0, done.stderr
    assert admin.secret_key not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs gloo")
def test_killed_at_random(tmp_path: Path, bucket: str, environment: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are killed at any moment of a save leave a whole checkpoint, of one step."""
    moments = random.Random(1)
    for number in range(2):
        begun = tmp_path / f"begun{number}"
        monkeypatch.setenv("JOB_BEGUN", str(begun))
        killed = threading.Thread(target=_kill_later, args=(begun, moments.uniform(0, 0.8)))
        killed.start()
        assert distributed_job.run("saving", f"s3://{bucket}/run", 2).returncode
        killed.join()
        found = distributed.whole(f"s3://{bucket}/run/saving")
        distributed_job.check(found, found["step"])


def _kill_later(begun: Path, seconds: float) -> None:
    """Kill a process of the job so many seconds after it has begun."""
    while not begun.exists():
        time.sleep(0.05)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(begun.read_text()), signal.SIGKILL)
