"""States of trainings by cerebras_pytorch 2.10.0 on a CPU, after four steps and after eight, with each optimizer and
scheduler: they are read, train to the same parameters, and are written again unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fsspec_csx import save
from fsspec_csx.trainer import Checkpoint, Trainer, TrainingLoop, modelzoo_state, optimizers, schedulers, training_state

DATA = json.loads((Path(__file__).parents[1] / "data" / "modelzoo_trainings.json").read_text())


def decoded(value: Any) -> Any:
    """A value of the file: tensors are objects, and numbers of parameters are text."""
    if isinstance(value, dict):
        if value.keys() == {"tensor", "dtype"}:
            return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
        return {int(key) if key.isdecimal() else key: decoded(each) for key, each in value.items()}
    return [decoded(each) for each in value] if isinstance(value, list) else value


def scheduler(case: Mapping[str, Any], optimizer: Any) -> Any:
    """The scheduler of a training."""
    ((name, arguments),) = case["scheduler"].items()
    if arguments is not None:
        return getattr(schedulers, name)(optimizer, *arguments)
    linear = schedulers.LinearLR
    if name == "SequentialLR":
        parts = [linear(optimizer, 0.0, 0.1, 5), schedulers.CosineDecayLR(optimizer, 0.1, 0.01, 20)]
        return schedulers.SequentialLR(optimizer, parts)
    if name == "ScalePerParamLR":
        return schedulers.ScalePerParamLR(optimizer, linear(optimizer, 0.1, 0.0, 20))
    return schedulers.ChainedScheduler(
        optimizer, [schedulers.ConstantLR(optimizer, 0.1), linear(optimizer, 1.0, 0.1, 9)]
    )


class Squares(torch.nn.Sequential):
    """A layer whose outputs are to be small."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(3, 2))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = super().forward(batch).square().mean()
        return loss


def trainer_of(case: Mapping[str, Any], **options: Any) -> Trainer:
    """A trainer with the parts of a training."""
    ((name, arguments),) = case["optimizer"].items()
    return Trainer(
        device="CPU",
        model_dir="/nonexistent",
        model=Squares,
        optimizer=lambda model: getattr(optimizers, name)(model.parameters(), lr=0.1, **arguments),
        schedulers=lambda optimizer: scheduler(case, optimizer),
        loop=TrainingLoop(max_steps=8, eval_frequency=0),
        checkpoint=Checkpoint(),
        loggers=[],
        **options,
    )


@pytest.mark.parametrize("case", DATA["trainings"], ids=lambda case: "-".join([*case["optimizer"], *case["scheduler"]]))
def test_states(case: Any, tmp_path: Path) -> None:
    """The state is read and written again with the same keys and values; the next steps are the same."""
    save(decoded(case["state"]), path := tmp_path / "checkpoint_4.mdl")
    trainer = trainer_of(case)
    trainer.load_checkpoint(path)
    written = modelzoo_state.to_modelzoo(trainer, training_state.collect(trainer))
    for name, value in decoded(case["state"]).items():
        check_alike(value, written[name], name)
    trainer.fit([decoded(DATA["batch"])], ckpt_path=path)
    for name, value in decoded(case["after"]).items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=1e-5, atol=1e-5)


def test_before_the_first_step() -> None:
    """An initial state has the same tensors, of the same shapes, and begins as it did there."""
    for case in DATA["trainings"]:
        trainer = trainer_of(case)
        first = modelzoo_state.to_modelzoo(trainer, training_state.collect(trainer))["optimizer"]["state"]
        later = decoded(case["state"])["optimizer"]["state"]
        name = str(case["optimizer"])
        assert {number: {*own} for number, own in first.items()} == {number: {*own} for number, own in later.items()}
        for number, own in later.items():
            assert all(first[number][key].shape == each.shape for key, each in own.items()), name
            for key, power in (("beta1_power", 5), ("beta2_power", 5)):
                if key in own:
                    torch.testing.assert_close(first[number][key] ** power, own[key], rtol=1e-5, atol=0.0)


def check_alike(theirs: Any, ours: Any, name: str) -> None:
    """The same keys, types, dtypes and shapes, and values within the rounding of a few steps."""
    if isinstance(theirs, dict):
        assert {*ours} == {*theirs}, name
        for key, value in theirs.items():
            check_alike(value, ours[key], f"{name}.{key}")
    elif isinstance(theirs, list):
        assert len(theirs) == len(ours), name
        for number, value in enumerate(theirs):
            check_alike(value, ours[number], f"{name}.{number}")
    elif isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor), name
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-7, msg=lambda text: f"{name}: {text}")
    else:
        assert ours == theirs, name
        assert isinstance(ours, torch.Tensor) is False, name
