"""A configuration names optimizers and schedulers as the ModelZoo does, or as torch does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fsspec_csx.errors import ConfigError
from fsspec_csx.trainer import Trainer, optimizers, schedulers
from fsspec_csx.trainer.config.training import Config

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "schedulers.json").read_text())


def trainer(root: Path, **init: Any) -> Trainer:
    """A trainer from a configuration with these parts."""
    parts = {"device": "CPU", "model_dir": str(root), "loggers": [], "model": {"class_path": "training.Model"}, **init}
    return Config({"trainer": {"init": {"optimizer": {"SGD": {"lr": 9.0}}, **parts}}}).trainer()


@pytest.mark.parametrize("case", REFERENCE["schedulers"], ids=lambda case: json.dumps(case["scheduler"])[:60])
def test_schedulers(tmp_path: Path, case: Any) -> None:
    """What a file of the ModelZoo says has the rates of the reference, nested ones, too."""
    if "error" in case:
        with pytest.raises(ConfigError, match="T_mult"):
            trainer(tmp_path, schedulers=[case["scheduler"]])
        return
    made = trainer(tmp_path, schedulers=[case["scheduler"]])
    assert made.optimizer is not None
    for expected in case["lr_of_step"]:
        assert made.optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-6)
        made.schedulers[0].step()


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        ({"StepLR": {"step_size": 2}}, torch.optim.lr_scheduler.StepLR),
        ({"ConstantLR": {}}, torch.optim.lr_scheduler.ConstantLR),
        ("LinearLR", torch.optim.lr_scheduler.LinearLR),
        ({"CyclicLR": {"base_lr": 0.0, "max_lr": 1.0}}, schedulers.CyclicLR),
        ({"CyclicLR": {"base_lr": 0.0, "max_lr": 1.0, "cycle_momentum": False}}, torch.optim.lr_scheduler.CyclicLR),
        ({"StepLR": {"initial_learning_rate": 1.0, "step_size": 2}}, schedulers.StepLR),
        ({"ScalePerParamLR": {"scheduler": {"ConstantLR": {"learning_rate": 1.0}}}}, schedulers.ScalePerParamLR),
        ({"ChainedScheduler": {"schedulers": [{"ConstantLR": {"learning_rate": 1.0}}]}}, schedulers.ChainedScheduler),
        ({"CosineDecayWD": {"initial_val": 1.0, "end_val": 0.0, "total_iters": 2}}, schedulers.CosineDecayWD),
    ],
    ids=str,
)
def test_whose_scheduler(tmp_path: Path, node: Any, kind: type) -> None:
    """The arguments decide whose it is."""
    (made,) = trainer(tmp_path, schedulers=[node]).schedulers
    assert type(made) is kind


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        ({"AdamW": {"lr": 0.1}}, optimizers.AdamW),
        ({"adamw": {"learning_rate": 0.1}}, optimizers.AdamW),
        ("adam", optimizers.Adam),
        ({"AdaFactor": {}}, optimizers.Adafactor),
        ({"Adafactor": {"d": 2.0}}, torch.optim.Adafactor),
        ({"SGD": {"lr": 0.1, "foreach": False}}, optimizers.SGD),
        ({"AdamW": {"lr": 0.1, "fused": False}}, torch.optim.AdamW),
        ({"AdamW": {"lr": 0.1, "correct_bias": False}}, optimizers.AdamW),
        ({"Adam": {"learning_rate": 0.1}}, optimizers.Adam),
        ({"Lion": {"lr": 0.1}}, optimizers.Lion),
        ({"Lamb": {}}, optimizers.Lamb),
    ],
    ids=str,
)
def test_whose_optimizer(tmp_path: Path, node: Any, kind: type) -> None:
    """The arguments decide whose it is."""
    assert type(trainer(tmp_path, optimizer=node).optimizer) is kind


def test_muon(tmp_path: Path) -> None:
    """Muon trains a model of matrices; one with other parameters is an error of the file."""
    arguments = {"in_features": 3, "out_features": 2, "bias": False}
    model = {"class_path": "torch.nn.Linear", "init_args": arguments}
    made = trainer(tmp_path, model=model, optimizer={"muon": {"learning_rate": 0.1}}).optimizer
    assert isinstance(made, torch.optim.Muon)
    first = made.param_groups[0]
    assert (first["lr"], first["weight_decay"], len(first["params"])) == (0.1, 0.01, 1)
    arguments["bias"] = True
    with pytest.raises(ConfigError, match=r"optimizer\.Muon: .*only matrices"):
        trainer(tmp_path, model=model, optimizer={"muon": {}})


def test_defaults_of_the_modelzoo(tmp_path: Path) -> None:
    """A name of the ModelZoo has its defaults."""
    made = trainer(tmp_path, optimizer={"AdamW": {"lr": 0.1}}).optimizer
    assert made is not None
    assert (made.defaults["eps"], made.defaults["weight_decay"]) == (1e-6, 0.0)


@pytest.mark.parametrize(
    ("schedulers", "cause"),
    [
        ([{"LinearLR": {"initial_learning_rate": 0.0}}], "LinearLR"),
        (
            [{"CosineDecayLR": {"initial_learning_rate": 0.0, "total_iters": 3}}],
            "CosineDecayLR lacks 'end_learning_rate'",
        ),
        (
            [{"SequentialLR": {"schedulers": [{"CosineDecayLR": {"x": 1}}]}}],
            r"SequentialLR.schedulers\[0\].CosineDecayLR.x",
        ),
        ([{"CosineDecayWD": {"initial_val": "x", "end_val": 1.0, "total_iters": 1}}], "initial_val cannot be 'x'"),
    ],
    ids=["linear", "lacks", "nested", "type"],
)
def test_wrong_arguments(tmp_path: Path, schedulers: Any, cause: str) -> None:
    """Wrong arguments are errors with their path in the file."""
    with pytest.raises(ConfigError, match=cause):
        trainer(tmp_path, schedulers=schedulers)
