"""Trainings with a local disk whose store fails for a while, or permanently."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch
from proxy import Fault, FaultProxy, Request, error_answer, fault_proxy
from training import loader, made

from fsspec_csx import load
from fsspec_csx.checkpoint import local_saves
from fsspec_csx.manage.directory import Directory
from fsspec_csx.testing import LocalS3
from fsspec_csx.trainer import Callback, Checkpoint, KeepNCheckpoints, Trainer

JOB = Path(__file__).parents[1] / "support" / "training_job.py"
BUSY: dict[str, Any] = {"answer": error_answer(503, "SlowDown")}
DENIED: dict[str, Any] = {"answer": error_answer(403, "AccessDenied")}
RESET: dict[str, Any] = {"resets": 1}


class Outage(Callback):
    """A store that fails within some steps; each step waits for the saves before, and completed ones are noted."""

    def __init__(self, steps: range) -> None:
        self.steps = steps
        self.down = False
        self.saved: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        wait([save for _, save in trainer.checkpoint.saves._saves])
        self.down = trainer.global_step in self.steps

    def on_after_save_checkpoint(self, trainer: Trainer, ckpt_path: str) -> None:
        assert ckpt_path.rpartition("/")[2] in {file.name for file in Directory(trainer.checkpoint.root).scan()[0]}
        self.saved.append(trainer.checkpoint.step_of(ckpt_path))


@pytest.fixture
def proxy(environment: LocalS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before the store; each request is made only once."""
    with fault_proxy(environment.endpoint_url) as running:
        for name in [name for name in os.environ if name.startswith("AWS_ENDPOINT_URL")]:
            monkeypatch.setenv(name, running.url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
        yield running


@pytest.fixture
def fit(proxy: FaultProxy, bucket: str, tmp_path: Path) -> Callable[..., tuple[Trainer, list[float]]]:
    """Trains up to a step by way of a disk, and returns the trainer and its losses, also if the training fails."""

    def run(steps: int, *callbacks: Callback, root: str = "run", error: str = "", **options: Any) -> Any:
        options = {"local_dir": str(tmp_path / "disk"), "keep_local": 9, **options}
        local_saves._tiers.clear()  # as in another process
        checkpoint = Checkpoint(2, checkpoint_root=f"s3://{bucket}/{root}", **options)
        trainer, losses = made("/nonexistent", *callbacks, checkpoint=checkpoint, loop={"max_steps": steps})
        if not error:
            trainer.fit(loader(), loader(8))
            return trainer, losses
        with pytest.raises(OSError, match=error):
            trainer.fit(loader(), loader(8))
        return trainer, losses

    return run


def steps_at(root: str) -> list[int]:
    """The steps of the checkpoints there, which are loaded."""
    return sorted(load(f"{root}/{file.name}")["global_step"] for file in Directory(root).scan()[0])


@pytest.mark.parametrize("refusal", [RESET, BUSY, DENIED])
def test_recovers(
    proxy: FaultProxy, fit: Any, bucket: str, caplog: pytest.LogCaptureFixture, refusal: dict[str, Any]
) -> None:
    """The training continues, and all checkpoints are uploaded, and reported once in the order of their steps."""
    outage = Outage(range(4, 10))
    proxy.faults = [Fault(when=lambda _: outage.down, times=9999, **refusal)]
    _, losses = fit(12, outage)
    assert outage.saved == steps_at(f"s3://{bucket}/run") == [2, 4, 6, 8, 10, 12]
    failed = [caplog.text.count(f"The upload of step {step} failed (") for step in range(2, 13, 2)]
    assert failed == [0, 1, 1, 1, 0, 0]
    assert f"s3://{bucket}/run/checkpoint_2.mdl is uploaded. The training continues" in caplog.text
    assert losses == fit(12, root="whole")[1]


def test_retention(proxy: FaultProxy, fit: Any, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It counts only what is uploaded; keep_local bounds what waits, and what was given up is not completed."""
    outage = Outage(range(4, 10))
    proxy.faults = [Fault(when=lambda _: outage.down, times=9999, **DENIED)]
    fit(12, outage, KeepNCheckpoints(3), keep_local=2)
    assert caplog.text.count("was not uploaded, and is deleted from") == 2
    assert outage.saved == [2, 8, 10, 12]
    assert steps_at(f"s3://{bucket}/run") == [8, 10, 12]
    assert len([*(tmp_path / "disk").glob("*/*.mdl")]) == 2


def test_never_recovers(
    proxy: FaultProxy, fit: Any, bucket: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of the training raises an error that says where the newest is; the next run resumes and uploads it."""
    outage = Outage(range(4, 99))
    proxy.faults = [Fault(when=lambda _: outage.down, times=9999, **BUSY)]
    _, losses = fit(8, outage, error="is complete at .*, and the next run with this local_dir resumes from it")
    assert outage.saved == [2]
    newest = max((tmp_path / "disk").glob("*/*.mdl"), key=lambda path: path.stat().st_mtime_ns)
    assert load(str(newest))["global_step"] == 8
    assert f"complete at {newest}" in caplog.text
    outage.down = False
    again = Outage(range(0))
    resumed, more = fit(10, again)
    assert load(resumed.checkpoint.resumed_from)["global_step"] == 8
    assert again.saved == [4, 6, 8, 10]
    assert steps_at(f"s3://{bucket}/run") == [2, *again.saved]
    assert losses + more == fit(10, root="whole")[1]


def test_one_is_refused(proxy: FaultProxy, fit: Any, bucket: str) -> None:
    """Newer ones are uploaded all the same, and the error at the end names the one that is not."""
    outage = Outage(range(0))
    proxy.faults = [Fault("PUT", when=lambda request: "/checkpoint_4" in request.path, times=9999, **DENIED)]
    fit(8, outage, error=r"run/checkpoint_4\.mdl is not uploaded .* is complete at")
    assert outage.saved == steps_at(f"s3://{bucket}/run") == [2, 6, 8]


def test_many_left_at_the_end(proxy: FaultProxy, fit: Any, bucket: str) -> None:
    """The end of the training uploads and completes all, though a callback fails at the first."""

    class Failing(Callback):
        def on_after_save_checkpoint(self, trainer: Trainer, ckpt_path: str) -> None:
            if trainer.checkpoint.step_of(ckpt_path) == 2:
                msg = "of a callback"
                raise RuntimeError(msg)

    class Recovering(Callback):
        def on_train_end(self, trainer: Trainer, model: Any, loop: Any, loop_idx: int) -> None:
            wait([save for _, save in trainer.checkpoint.saves._saves])
            outage.down = False

    outage = Outage(range(1, 99))
    proxy.faults = [Fault(when=lambda _: outage.down, times=9999, **BUSY)]
    with pytest.raises(RuntimeError, match="of a callback"):
        fit(6, outage, Failing(), Recovering())
    assert outage.saved == steps_at(f"s3://{bucket}/run") == [2, 4, 6]


def test_nothing_on_the_disk(proxy: FaultProxy, fit: Any, tmp_path: Path) -> None:
    """A checkpoint that only the store could hold ends the training, as without a disk."""
    (tmp_path / "file").write_text("no folder")
    outage = Outage(range(4, 99))
    proxy.faults = [Fault("PUT", when=lambda _: outage.down, times=9999, **DENIED)]
    _, losses = fit(10, outage, local_dir=str(tmp_path / "file"), error="AccessDenied|not allowed")
    assert len(losses) == 5


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_many_processes(proxy: FaultProxy, bucket: str, tmp_path: Path) -> None:
    """All continue while the store refuses the first one's uploads, and all end with an error if it never recovers."""

    def is_checkpoint(request: Request) -> bool:
        return "/run/checkpoint_" in request.path

    proxy.faults = [Fault("PUT", when=is_checkpoint, times=9999, **DENIED)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", str(JOB), f"s3://{bucket}/run", "6", "ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LOCAL_DIR": str(tmp_path / "disk")}
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True, "timeout": 110}
    done = subprocess.run(command, cwd=JOB.parent, check=False, **options)
    assert done.returncode != 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["1", "2", "3", "4", "5", "6"]
    assert "is complete at" in done.stderr
    assert "Another process did not save the last checkpoint" in done.stderr
