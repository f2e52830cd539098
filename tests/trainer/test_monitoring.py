"""Callbacks that watch a training: norms, loss, rate, remaining time and the metrics of a model."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from training import Metrics, Model, loader, made

from fsspec_csx.trainer import (
    Callback,
    CheckLoss,
    ComputeNorm,
    Logging,
    ModelEvalMetrics,
    Precision,
    RateProfiler,
    TimeRemaining,
    Trainer,
    monitoring,
)


def test_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logged norms are those of the parameters before the step, and of the gradients before clipping."""
    expected: list[tuple[float, float, float]] = []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, model: Any, optimizer: Any) -> None:
            gradients = {name: each.grad.flatten() for name, each in model.named_parameters()}
            first = torch.cat([each for name, each in gradients.items() if "layers.0." in name])
            weights = torch.cat([each.detach().flatten() for each in model.parameters()])
            norms = (weights.norm(), torch.cat([*gradients.values()]).norm(), first.norm())
            expected.append((norms[0].item(), norms[1].item(), norms[2].item()))

    metrics = Metrics()
    options: dict[str, Any] = {"loggers": [metrics], "logging": Logging(2), "precision": Precision(1e-3)}
    computed, norm = list[int](), monitoring._norm
    monkeypatch.setattr(monitoring, "_norm", lambda each: computed.append(trainer.global_step + 1) or norm(each))
    trainer, _ = made(str(tmp_path), Watch(), ComputeNorm(), steps=None, **options)
    trainer.fit(loader())
    assert {*computed} == {2, 4, 6, 8, 10}  # no others
    names = ("model_wise_params_norm", "model_wise_grad_norm", "per_layer_grad_norm/layer_0")
    found = [(step, *(each[name] for name in names)) for step, each in metrics.logged if names[0] in each]
    assert [each[0] for each in found] == [2, 4, 6, 8, 10]
    for (step, *norms), each in zip(found, expected[1::2], strict=True):
        assert norms == pytest.approx(each, rel=1e-5), step
    assert "per_layer_grad_norm/layer_2" in metrics.logged[-1][1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_loss(tmp_path: Path, value: float) -> None:
    """NaN or infinity ends the training, and no checkpoint has it; also a validation."""

    class Failing(Model):
        calls = 0

        def forward(self, batch: torch.Tensor) -> Any:
            self.calls += 1
            return super().forward(batch) | ({"loss": self.layers(batch).sum() * value} if self.calls == 3 else {})

    trainer, _ = made(str(tmp_path), CheckLoss(), steps=1, model=Failing)
    with pytest.raises(ValueError, match=r"loss is (nan|-?inf) at step 3"):
        trainer.fit(loader())
    assert sorted(each.name for each in tmp_path.glob("*.mdl")) == ["checkpoint_1.mdl", "checkpoint_2.mdl"]
    trainer, _ = made(str(tmp_path), CheckLoss(), steps=None, model=Failing)
    with pytest.raises(ValueError, match="loss is"):
        trainer.validate(loader())


def test_loss_of_many_numbers(tmp_path: Path) -> None:
    """The loss must be one number."""
    trainer, _ = made(str(tmp_path), CheckLoss(), steps=None, model=lambda: torch.nn.Linear(4, 4))
    with pytest.raises(TypeError, match=r"shape \(4, 4\)"):
        trainer.fit(loader())


class Slow(Callback):
    """Takes a while for each batch."""

    def on_train_step_start(self, *args: Any) -> None:
        time.sleep(0.05)


def test_rate(tmp_path: Path) -> None:
    """Samples and steps per second, from the clock that each stretch of training starts."""
    metrics, profiler = Metrics(), RateProfiler()
    loop = {"max_steps": 4, "grad_accum_steps": 2, "eval_frequency": 0}
    trainer, _ = made(str(tmp_path), profiler, Slow(), steps=None, loop=loop, loggers=[metrics])
    trainer.fit(loader())
    rates = [each for _, each in metrics.logged if "avg_samples_per_sec" in each]
    assert len(rates) == 4
    for each in rates:
        assert 0 < each["avg_samples_per_sec"] < 4 / 0.05 * 2
        assert each["local_samples_per_sec"] > 0
        assert each["avg_steps_per_sec"] == pytest.approx(each["avg_samples_per_sec"] / 8)
    assert profiler.total_count == 4 * 8
    assert profiler.global_rate == pytest.approx(profiler.total_count / profiler.elapsed_seconds)


def test_time_remaining(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It falls to 0, also when the run resumes."""
    caplog.set_level(logging.INFO, "fsspec_csx.trainer")
    for steps, expected in ((2, [1, 2]), (6, [3, 4, 5, 6])):
        metrics = Metrics()
        loop = {"max_steps": steps, "eval_frequency": 0}
        trainer, _ = made(str(tmp_path), Slow(), TimeRemaining(), loop=loop, loggers=[metrics])
        trainer.fit(loader())
        times = {step: each["time_remaining"] for step, each in metrics.logged if "time_remaining" in each}
        assert [*times] == expected
        assert times[expected[0]] >= 0.05 * (len(expected) - 1)
        assert times[steps] == 0
    assert "Time remaining: 0:00:00" in caplog.messages


def test_model_metrics(tmp_path: Path) -> None:
    """The metrics that are parts of the model are reset, computed and logged with each validation."""

    class Count(torch.nn.Module):
        num_updates = 7

        def reset(self) -> None:
            self.num_updates = 0

        def compute(self) -> int:
            return self.num_updates

    class Counting(Model):
        def __init__(self) -> None:
            super().__init__()
            self.batches, self.idle = Count(), Count()

        def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
            self.batches.num_updates += 1
            return super().forward(batch)

    logged = Metrics()
    trainer = Trainer("CPU", model_dir=tmp_path, model=Counting, callbacks=[ModelEvalMetrics()], loggers=[logged])
    assert trainer.validate(loader(8), ckpt_path=None)["batches"] == 2
    assert (0, {"batches": 2.0}) in logged.logged
