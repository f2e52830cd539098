"""Many processes communicate little, and only the first one writes and logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import running
from training import loader, made

import fsspec_csx
from fsspec_csx.trainer import processes

JOB = Path(__file__).with_name("two_processes_job.py")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Few collective calls in 200 steps; loggers of the first process alone; each draws numbers of its own."""
    trainer, _ = made(str(tmp_path), loop={"max_steps": 2, "eval_frequency": 0})
    trainer.fit(loader())
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", str(JOB), str(tmp_path)]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fsspec_csx.__file__).parents[1])}
    with running(
        command,
        env={**os.environ, **own},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        output, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors
    first, second = sorted(
        (json.loads(line) for line in output.splitlines() if line.startswith("{")), key=lambda line: int(line["rank"])
    )
    assert 0 < first["calls"] < 60
    assert 0 < second["calls"] < 60
    assert first["boards"] == second["boards"] == ["board0"]
    assert (first["informs"], second["informs"]) == (True, False)
    assert first["resumed"] == second["resumed"] == str(tmp_path / "checkpoint_2.mdl")
    assert all(one != other for one, other in zip(first["drawn"], second["drawn"], strict=True))


def test_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """About once in a second, whatever a step takes, at a step that all agree on; a process alone knows at once."""
    assert processes.PeriodicSync().any_process(True, False) == [True, False]
    now = 0.0
    asked: list[float] = []

    def largest(*numbers: int) -> list[int]:
        asked.append(now)
        return [*numbers]

    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "_maximum", largest)
    monkeypatch.setattr(processes.time, "monotonic", lambda: now)
    for step_time, rate in ((0.1, 10), (3.0, 1), (0.001, 64)):
        asked.clear()
        each = processes.PeriodicSync()
        for _ in range(1000):
            now += step_time
            each.any_process(False)
        assert 1000 / rate <= len(asked) <= 1000 / rate + 10
