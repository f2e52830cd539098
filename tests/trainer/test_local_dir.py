"""Trainings that save to a local disk first."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from commands import cszoo, running
from configurations import written
from conftest import recorded_requests
from forked import python
from training import loader, made

from fsspec_csx import load, save
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3
from fsspec_csx.trainer import (
    Callback,
    Checkpoint,
    KeepBestCheckpoints,
    KeepNCheckpoints,
    SaveCheckpointState,
    Trainer,
)

JOB = Path(__file__).parents[1] / "support" / "training_job.py"


class Run:
    """Trainings of one root and one local disk."""

    def __init__(self, root: str, disk: Path) -> None:
        self.root = root
        self.disk = disk

    def fit(self, steps: int, *callbacks: Any, fit: dict[str, Any] | None = None, **options: Any) -> list[float]:
        """Train up to a step; the losses."""
        checkpoint = Checkpoint(2, checkpoint_root=self.root, local_dir=str(self.disk), **options)
        self.trainer: Trainer
        self.trainer, losses = made("/nonexistent", *callbacks, checkpoint=checkpoint, loop={"max_steps": steps})
        self.trainer.fit(loader(), loader(8), **fit or {})
        return losses

    def local(self, step: int) -> Path:
        """The path of a local checkpoint."""
        return next(self.disk.glob("*")) / f"checkpoint_{step}.mdl"

    def remote(self, step: int) -> str:
        """The path of a checkpoint at the root."""
        return f"{self.root}/checkpoint_{step}.mdl"

    def steps(self, local: bool = False) -> list[int]:
        """The steps of the checkpoints there are."""
        fs, path = fsspec.url_to_fs(str(self.local(0).parent) if local else self.root)
        fs.invalidate_cache()
        return sorted(int(name.rpartition("_")[2][:-4]) for name in fs.ls(path, detail=False) if name.endswith(".mdl"))

    def forget_upload(self, step: int) -> None:
        """Leave what a process leaves that is killed before an upload."""
        record = Path(f"{self.local(step)}.json")
        record.write_text(json.dumps({**json.loads(record.read_text()), "remote": None}))
        fs, path = fsspec.url_to_fs(self.remote(step))
        fs.rm_file(path)


@pytest.fixture
def run(root: str, tmp_path: Path) -> Run:
    """On each kind of filesystem."""
    return Run(f"{root}/run", tmp_path / "disk")


@pytest.fixture
def on_s3(environment: LocalS3, bucket: str, tmp_path: Path) -> Run:
    return Run(f"s3://{bucket}/run", tmp_path / "disk")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def test_resumed_from_the_disk(run: Run) -> None:
    """All checkpoints are at the root, the newest on the disk too, and a resumed run is the one that never stopped."""
    losses = run.fit(6)
    assert run.steps() == [2, 4, 6]
    assert run.steps(local=True) == [4, 6]
    assert load(str(run.local(6)))["global_step"] == 6
    losses += run.fit(10)
    assert run.trainer.checkpoint.resumed_from == run.remote(6)
    assert run.steps() == [2, 4, 6, 8, 10]
    whole, expected = made(str(run.disk.parent / "whole"), loop={"max_steps": 10})
    whole.fit(loader(), loader(8))
    assert losses == expected


class Release(Callback):
    """Lets the uploads continue at the fifth step."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def on_train_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 5:
            self.go.set()


def test_only_on_the_disk(on_s3: Run, logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an upload lasts, the log says which checkpoint is not at the root yet."""
    release, put_file = Release(), CSXFileSystem.put_file

    def held(*args: Any, **kwargs: Any) -> Any:
        assert release.go.wait(60)
        return put_file(*args, **kwargs)

    monkeypatch.setattr(CSXFileSystem, "put_file", held)
    on_s3.fit(6, release)
    assert "checkpoint_2.mdl is only on the local disk; none is uploaded yet" in logged.text
    assert on_s3.steps() == [2, 4, 6]


def test_no_bytes_from_the_root(on_s3: Run) -> None:
    """What is the same on the disk is not downloaded."""
    on_s3.fit(4)
    with recorded_requests() as requests:
        assert len(on_s3.fit(6)) == 2
    assert "GetObject" not in requests
    on_s3.local(6).unlink()
    with recorded_requests() as requests:
        assert on_s3.fit(6) == []
    assert "GetObject" in requests


def test_newer_on_the_disk(run: Run, logged: pytest.LogCaptureFixture) -> None:
    """What was not uploaded is resumed from, and uploaded while the training continues."""
    losses = run.fit(6)
    for step in (4, 6):
        run.forget_upload(step)
    assert run.steps() == [2]
    assert run.trainer.checkpoint.get_all_checkpoints(run.root) == [run.remote(step) for step in (2, 4, 6)]
    losses += run.fit(8)
    assert run.trainer.checkpoint.resumed_from == run.remote(6)
    assert len(losses) == 8
    assert run.steps() == [2, 4, 6, 8]
    assert load(run.remote(4))["global_step"] == 4
    assert run.steps(local=True) == [6, 8]


@pytest.mark.slow
def test_older_on_the_disk(run: Run) -> None:
    """The root is resumed from, and what another machine went past is not uploaded."""
    run.fit(4)
    run.forget_upload(4)
    elsewhere = Run(run.root, run.disk.parent / "other")
    elsewhere.fit(6)
    fs, path = fsspec.url_to_fs(run.remote(4))
    fs.rm_file(path)
    assert run.fit(8) != []
    assert run.trainer.checkpoint.resumed_from == run.remote(6)
    assert run.steps() == [2, 6, 8]


@pytest.mark.slow
def test_not_resumed_from(on_s3: Run, logged: pytest.LogCaptureFixture) -> None:
    """A local file that is damaged, cut short, replaced at the root, deleted there or without a record."""

    def flip() -> None:
        data = bytearray(on_s3.local(6).read_bytes())
        data[len(data) // 2] ^= 1
        on_s3.local(6).write_bytes(data)

    def cut() -> None:
        on_s3.local(6).write_bytes(on_s3.local(6).read_bytes()[:-100])

    def replace() -> None:
        other = load(on_s3.remote(6))
        other["global_step"] = 7
        save(other, on_s3.remote(6))

    for number, (harm, step) in enumerate([(flip, 6), (cut, 6), (replace, 7), (lambda: on_s3.local(6).unlink(), 6)]):
        run = Run(f"{on_s3.root}{number}", on_s3.disk / str(number))
        on_s3.root, on_s3.disk = run.root, run.disk
        run.fit(6)
        harm()
        logged.clear()
        assert len(run.fit(8)) == 8 - step
        assert run.trainer.checkpoint.resumed_from == run.remote(6)
        assert ("is not used" in logged.text) == on_s3.local(6).exists(), logged.text


def test_deleted_at_the_root(on_s3: Run) -> None:
    """A checkpoint that was uploaded and then deleted does not come back."""
    on_s3.fit(6)
    fs, path = fsspec.url_to_fs(on_s3.remote(6))
    fs.rm_file(path)
    assert on_s3.trainer.checkpoint.get_all_checkpoints(on_s3.root) == [on_s3.remote(step) for step in (2, 4)]
    assert len(on_s3.fit(6)) == 2
    assert on_s3.trainer.checkpoint.resumed_from == on_s3.remote(4)


@pytest.mark.slow
def test_root_deleted(on_s3: Run, logged: pytest.LogCaptureFixture) -> None:
    """A run resumes from what is only on the disk, with a warning; the run after a new training does not."""
    fs, path = fsspec.url_to_fs(on_s3.root)
    on_s3.fit(6)
    on_s3.forget_upload(6)
    fs.rm(path, recursive=True)
    assert len(on_s3.fit(8)) == 2
    assert on_s3.trainer.checkpoint.resumed_from == on_s3.remote(6)
    assert "has no checkpoints, and checkpoint_6.mdl is only in" in logged.text
    assert on_s3.steps() == [6, 8]
    on_s3.forget_upload(8)
    fs.rm(path, recursive=True)
    assert len(on_s3.fit(2, fit={"ckpt_path": None})) == 2
    assert f"{on_s3.local(8)}, which an earlier run left, is not uploaded" in logged.text
    assert on_s3.steps() == [2]
    assert len(on_s3.fit(4)) == 2
    assert on_s3.trainer.checkpoint.resumed_from == on_s3.remote(2)


def test_other_runs(on_s3: Run) -> None:
    """One disk serves several roots, whose checkpoints have the same names."""
    on_s3.fit(4)
    other = Run(f"{on_s3.root}/other", on_s3.disk)
    assert len(other.fit(2)) == 2
    assert other.trainer.checkpoint.resumed_from is None
    assert len([*on_s3.disk.iterdir()]) == 2


def test_noted_late(on_s3: Run, logged: pytest.LogCaptureFixture) -> None:
    """Killed between the end of the upload and its note: the checksums are the same, and nothing is sent again."""
    on_s3.fit(4)
    record = Path(f"{on_s3.local(4)}.json")
    before = json.loads(record.read_text())
    record.write_text(json.dumps({**before, "remote": None}))
    with recorded_requests() as requests:
        assert on_s3.fit(4) == []
    assert "GetObject" not in requests
    assert json.loads(record.read_text()) == before
    assert requests.count("PutObject") <= 1  # that of the probe


def test_disk_unusable(run: Run, logged: pytest.LogCaptureFixture) -> None:
    """The checkpoints go straight to the root, and warnings say so."""
    run.disk.write_text("no folder")
    assert len(run.fit(4)) == 4
    assert run.steps() == [2, 4]
    assert logged.text.count("without a local copy in") == 2


@pytest.mark.slow
def test_thinned_on_both_sides(run: Run) -> None:
    """What retention deletes, it deletes on the disk too, and no best one is lost to uploads that come late."""
    run.fit(8, KeepNCheckpoints(1), keep_local=9)
    assert run.steps() == run.steps(local=True) == [8]
    run.forget_upload(8)
    run.fit(12, KeepNCheckpoints(1), keep_local=9)
    assert run.steps() == run.steps(local=True) == [8, 12]  # the one resumed from stays


def test_best_is_kept(run: Run) -> None:
    """By the result of its own step, though later ones are saved before it is uploaded."""
    keep = KeepBestCheckpoints(1)
    run.fit(8, keep, keep_local=9)
    values = load(run.remote(8))["retention"]["KeepBestCheckpoints"]
    assert values["values"] == {name: keep._values[name] for name in values["values"]}
    best = min(keep._values, key=keep._values.__getitem__)
    assert run.steps() == sorted({8, int(best[11:-4])})


def test_every_second_is_copied(on_s3: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of every k-th checkpoint are saved, also if its upload ends after the next checkpoint was saved."""
    release = Release()
    upload = CSXFileSystem.put_file

    def waiting(self: CSXFileSystem, *args: Any, **options: Any) -> Any:
        assert release.go.wait(60)
        return upload(self, *args, **options)

    monkeypatch.setattr(CSXFileSystem, "put_file", waiting)
    on_s3.fit(8, release, SaveCheckpointState(2))
    fs, path = fsspec.url_to_fs(on_s3.root)
    names = [name.rpartition("/")[2] for name in fs.glob(f"{path}/model_*")]
    assert names == ["model_checkpoint_4.mdl", "model_checkpoint_8.mdl"]


def test_copied_after_a_kill(on_s3: Run) -> None:
    """The states are saved, also if a killed process left the checkpoint to be uploaded."""
    on_s3.fit(4, SaveCheckpointState(2))
    on_s3.forget_upload(4)
    fs, path = fsspec.url_to_fs(f"{on_s3.root}/model_checkpoint_4.mdl")
    fs.rm_file(path)
    on_s3.fit(5, SaveCheckpointState(2))
    assert load(f"{on_s3.root}/model_checkpoint_4.mdl", keys=["model"])


def test_refused() -> None:
    """What is of several files, and what is no local folder or number."""
    wrong: list[dict[str, Any]] = [
        {"local_dir": "x", "format": "cerebras"},
        {"local_dir": "x", "sharded": True},
        {"local_dir": "s3://bucket/x"},
        {"local_dir": ""},
        {"local_dir": "x", "keep_local": 0},
        {"local_dir": "x", "keep_local": True},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match="local"):
            Checkpoint(2, **options)


@pytest.mark.slow
def test_yaml(environment: LocalS3, bucket: str, tmp_path: Path) -> None:
    """A file names the disk."""
    checkpoint = {"steps": 2, "checkpoint_root": f"s3://{bucket}/run", "local_dir": str(tmp_path / "disk")}
    file = written(tmp_path, init__checkpoint={**checkpoint, "keep_local": 1})
    done = cszoo(file, noun="fit", cwd=JOB.parent)
    assert done.returncode == 0, done.stderr
    run = Run(f"s3://{bucket}/run", tmp_path / "disk")
    assert (run.steps(), run.steps(local=True)) == ([2, 4], [4])
    wrong = written(tmp_path, init__checkpoint={**checkpoint, "local_dir": "s3://bucket/disk"})
    done = cszoo(wrong, noun="fit", cwd=JOB.parent)
    assert "trainer.init.checkpoint: A local folder is a path on this machine" in done.stderr


def lines(output: str) -> dict[int, str]:
    """The steps that a job printed, with their losses."""
    return {int(line.split()[0]): line.split()[1] for line in output.splitlines() if line != "done"}


@pytest.mark.slow
def test_killed(on_s3: Run) -> None:
    """kill -9 at any moment: the losses are those of one run, and in the end all checkpoints are at the root."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_DIR": str(on_s3.disk), "PAUSE": "0.03"}
    options: dict[str, Any] = {"env": environment, "text": True, "stdout": subprocess.PIPE, "cwd": JOB.parent}

    def command(root: str) -> list[str]:
        return [*python(), str(JOB), root, "40"]

    with running(command(f"{on_s3.root}/whole"), **options) as process:
        whole = lines(process.communicate(timeout=100)[0])
    moments, losses = random.Random(7), dict[int, str]()
    for _ in range(8):
        with running(command(on_s3.root), **options) as process:
            time.sleep(moments.uniform(0.2, 1.5))
            process.kill()
            losses |= lines(process.communicate()[0])
    with running(command(on_s3.root), **options) as process:
        losses |= lines(process.communicate(timeout=100)[0])
    assert losses == whole
    assert on_s3.steps() == [*range(2, 41, 2)]
    assert on_s3.steps(local=True) == [38, 40]
    for step in on_s3.steps():
        assert load(on_s3.remote(step))["global_step"] == step


@pytest.mark.long
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_many_processes(on_s3: Run) -> None:
    """The first process writes to the disk; what was not uploaded is there for all before they load it."""

    def together(steps: int, disk: Path) -> list[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", "127.0.0.1:0", str(JOB), on_s3.root, str(steps), "ddp"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_DIR": str(disk)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=110, cwd=JOB.parent, check=True
        )
        return [line.split()[0] for line in done.stdout.splitlines()]

    assert together(4, on_s3.disk) == ["1", "2", "3", "4", "done"]
    on_s3.forget_upload(4)
    assert together(6, on_s3.disk) == ["5", "6", "done"]
    assert (on_s3.steps(), on_s3.steps(local=True)) == ([2, 4, 6], [4, 6])
