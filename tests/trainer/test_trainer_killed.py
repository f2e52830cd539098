"""A training whose process is killed at any moment resumes from a complete checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from commands import running
from forked import python
from training import loader, made

from fsspec_csx import load
from fsspec_csx.testing import LocalS3
from fsspec_csx.trainer import Callback, Trainer

JOB = Path(__file__).parents[1] / "support" / "training_job.py"


def started(root: str, steps: int, pause: float = 0.0) -> AbstractContextManager[subprocess.Popen[str]]:
    """A training in a process of its own."""
    environment = {**os.environ, "PAUSE": str(pause), "OMP_NUM_THREADS": "1"}
    command = [*python(), str(JOB), root, str(steps)]
    return running(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=JOB.parent)


def losses(root: str, steps: int) -> dict[int, str]:
    """The losses of a training that nothing stops."""
    with started(root, steps) as process:
        output, errors = process.communicate(timeout=100)
    assert "done" in output, errors
    return {int(line.split()[0]): line.split()[1] for line in output.splitlines() if line != "done"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The losses of a training that nothing stops."""
    return losses(str(tmp_path_factory.mktemp("whole")), 12)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_ended(environment: LocalS3, bucket: str, number: signal.Signals, whole: dict[int, str]) -> None:
    """By kill -9, and by SIGTERM with a last checkpoint; the losses are those of one run."""
    root = f"s3://{bucket}"
    steps: dict[int, str] = {}
    with started(f"{root}/run", 12, pause=0.05) as process:
        assert process.stdout is not None
        for line in process.stdout:
            step, loss = line.split()
            steps[int(step)] = loss
            if len(steps) == 5:
                process.send_signal(number)
                break
        rest, errors = process.communicate(timeout=100)
    steps.update({int(line.split()[0]): line.split()[1] for line in rest.splitlines()})
    expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}
    assert process.returncode == expected[number], errors
    fs, path = fsspec.url_to_fs(f"{root}/run")
    fs.invalidate_cache()
    found = sorted(int(each.rpartition("_")[2][:-4]) for each in fs.ls(path, detail=False) if each.endswith(".mdl"))
    for step in found:
        assert load(f"{root}/run/checkpoint_{step}.mdl")["global_step"] == step
    if number == signal.SIGTERM:
        assert found[-1] == max(steps)
    rerun = losses(f"{root}/run", 12)
    assert min(rerun) == (found[-1] if found else 0) + 1
    assert {**steps, **rerun} == whole


class Terminated(Callback):
    """Gets SIGTERM in a validation."""

    def on_validate_start(self, trainer: Trainer, *args: Any) -> None:
        signal.raise_signal(signal.SIGTERM)


def test_terminated_after_the_last_step(tmp_path: Path) -> None:
    """SIGTERM in the last validation ends the process, too, when the checkpoint is complete."""
    trainer, _ = made(str(tmp_path), Terminated(), loop={"max_steps": 4, "eval_frequency": 4})
    with pytest.raises(SystemExit) as ended:
        trainer.fit(loader(), loader(8))
    assert ended.value.code == 143
    assert load(str(tmp_path / "checkpoint_4.mdl"))["global_step"] == 4


class Failing(Terminated):
    """Gets SIGTERM in a validation, which then fails."""

    def on_validate_end(self, *args: Any) -> None:
        raise ArithmeticError


def test_terminated_before_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SIGTERM ends a process whose training fails then, although the program catches the error."""
    trainer, _ = made(str(tmp_path), Failing(), loop={"max_steps": 4, "eval_frequency": 2})
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, contextlib.suppress(Exception):
        trainer.fit(loader(), loader(8))
    assert ended.value.code == 143
    assert "ArithmeticError" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.long
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_many_processes(environment: LocalS3, bucket: str, sharding: str) -> None:
    """Two processes resume from what one saved, or one from what two saved."""
    root = f"s3://{bucket}/run"

    def alone(steps: int) -> None:
        trainer, losses = made(root, loop={"max_steps": steps, "eval_frequency": 0})
        trainer.fit(loader())
        assert len(losses) == (4 if sharding == "fsdp" else 2)

    def together(steps: int, begun: int) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
        command += ["--rdzv-endpoint", "127.0.0.1:0", str(JOB), root, str(steps), sharding]
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=110, cwd=JOB.parent)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.split("\n")
        assert lines[-2] == "done"
        assert [int(line.split()[0]) for line in lines[:-2]] == [*range(begun + 1, steps + 1)]

    if sharding == "ddp":
        together(4, 0)
        alone(6)
    else:
        alone(4)
        together(6, 4)
    saved = load(f"{root}/checkpoint_{4 if sharding == 'ddp' else 6}.mdl")
    assert len(saved["random_states"]) == len(saved["batches"]) == 2
    assert {name: tuple(value.shape) for name, value in saved["model"].items()}["layers.0.weight"] == (8, 4)
    first = 0 if sharding == "ddp" else "0"  # what is sharded has text for keys
    assert saved["optimizer"]["state"][first]["exp_avg"].shape == (8, 4)
