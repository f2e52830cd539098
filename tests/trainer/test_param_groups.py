"""Groups of parameters: their weight decay, their tags for schedulers, and the factors of their rates."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from zoo import Decoder, changed, content

from fsspec_csx.trainer import schedulers
from fsspec_csx.trainer.config.document import read
from fsspec_csx.trainer.param_groups import param_groups


def test_param_groups() -> None:
    """Biases and norms do not decay; a model gives its own groups for the rates; frozen parameters are left out."""
    model = Decoder(16)
    model.head.requires_grad_(False)
    names = {id(each): name for name, each in model.named_parameters()}

    def named(groups: list[dict[str, Any]]) -> list[list[str]]:
        return [[names[id(each)] for each in group["params"]] for group in groups]

    decayed = ["embedding.weight", "decoder.dense.weight"]
    spared = ["decoder.dense.bias", "norm.weight", "norm.bias"]
    groups = param_groups(model, weight_decay=0.5)
    assert named(groups) == [decayed, spared]
    assert [each["weight_decay"] for each in groups] == [0.5, 0.0]
    own = {"all": SimpleNamespace(param_filter_patterns="*weight", scale=0.5)}
    model.lr_adjustment_groups = own  # type: ignore[assignment]
    assert [each["adjust_learning_rate"] for each in param_groups(model)] == [0.5, 0.5, 1.0]
    assert named(param_groups(model, adjust_learning_rate={"all": 1.0})) == [decayed, spared]
    torch.optim.AdamW(param_groups(torch.nn.Linear(2, 2, bias=False)))  # with an empty group


def test_first_rates_of_tags(tmp_path: Path) -> None:
    """A scheduler within another leaves the groups of other tags alone, also when it is made."""
    trainer = read(changed(tmp_path, "finetuning"))[0].trainer()
    assert trainer.optimizer is not None
    rates = {each.get("tags", [None])[0]: each["lr"] for each in trainer.optimizer.param_groups}
    assert rates == {"embedding": 0.0, "linear": 0.3, None: 0.3}
    made = content("finetuning")["trainer"]["init"]["schedulers"]
    second = read(changed(tmp_path, "finetuning", schedulers=made[::-1]))[0].trainer()
    assert second.optimizer is not None
    assert [each["lr"] for each in second.optimizer.param_groups] == [0.0, 0.3, 0.3]


def test_rates_of_layers(tmp_path: Path) -> None:
    """The factors of adjust_learning_rate scale a scheduler that is not a ScalePerParamLR itself."""
    trainer = read(changed(tmp_path, "mup", model_dir=str(tmp_path)))[0].fit()
    assert trainer.optimizer is not None
    (scheduler,) = trainer.schedulers
    assert type(scheduler) is schedulers.ScalePerParamLR
    rates = [each["lr"] / each["adjust_learning_rate"] for each in trainer.optimizer.param_groups]
    assert rates == pytest.approx([rates[0]] * len(rates))
    assert [each["adjust_learning_rate"] for each in trainer.optimizer.param_groups] == [0.25, 0.5, 1.0, 1.0]
