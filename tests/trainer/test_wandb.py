"""Metrics go to Weights & Biases, here in its offline mode."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from training import loader, made

from fsspec_csx.trainer import WandbLogger, processes


@pytest.mark.slow
def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step's metrics are in the run, and a resumed training continues it, whatever its identifier."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps, run_id in ((2, "my-run-1"), (4, None)):
        logger = WandbLogger("tests", run_id=run_id)
        trainer, losses = made(str(tmp_path), loggers=[logger], loop={"max_steps": steps, "eval_frequency": 0})
        trainer.fit(loader())
        summary = logger.run.summary
        assert (summary["global_step"], summary["loss"]) == (steps, pytest.approx(losses[-1]))
        logger.finalize()
    files = [each.name for each in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert files == ["run-my-run-1.wandb"] * 2


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its absence is an error before anything is trained, that names the extra."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"fsspec-csx\[wandb\]"):
        made(str(tmp_path), loggers=[WandbLogger()])


@pytest.mark.slow
def test_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first process begins a run."""
    pytest.importorskip("wandb")
    monkeypatch.setattr(processes, "is_first", lambda: False)
    trainer, _ = made(str(tmp_path), loggers=[WandbLogger()], steps=None)
    trainer.log_metrics(loss=1.0)
    assert not (tmp_path / "wandb").exists()


def test_unknown_resume() -> None:
    """Another way to resume than wandb has is refused."""
    with pytest.raises(ValueError, match="resume is one of"):
        WandbLogger(resume="always")
