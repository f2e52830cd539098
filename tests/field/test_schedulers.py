"""Schedulers with the ModelZoo's names compute the same as its own, also after a resume."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from training import loader, made

from fsspec_csx import load, save
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.trainer import Callback, Trainer, schedulers

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "schedulers.json").read_text())


def optimizer(*groups: dict[str, Any]) -> torch.optim.Optimizer:
    """An optimizer of a parameter for each group."""
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.ones(2))], **each} for each in groups or ({},)], lr=9.0
    )


def scheduler(definition: Any, of: torch.optim.Optimizer) -> Any:
    """A scheduler, and those that it is made of, from what a file says."""
    ((name, arguments),) = definition.items()
    arguments = dict(arguments)
    if "schedulers" in arguments:
        arguments["schedulers"] = [scheduler(each, of) for each in arguments["schedulers"]]
    if "scheduler" in arguments:
        arguments["scheduler"] = scheduler(arguments["scheduler"], of)
    return getattr(schedulers, name)(of, **arguments)


def rates(of: torch.optim.Optimizer) -> list[float]:
    """The learning rates of all groups."""
    return [group["lr"] for group in of.param_groups]


def named(case: Any) -> str:
    """What a case is called."""
    return json.dumps(case["scheduler"])[:60]


@pytest.mark.parametrize("case", REFERENCE["schedulers"], ids=named)
def test_rates(case: Any) -> None:
    """The rate of each step is that of the reference; what it refuses is refused."""
    own = optimizer()
    if "error" in case:
        with pytest.raises(ValueError, match="T_mult"):
            scheduler(case["scheduler"], own)
        return
    made_here = scheduler(case["scheduler"], own)
    for step, expected in enumerate(case["lr_of_step"]):
        assert rates(own) == pytest.approx([expected], abs=1e-6), step
        made_here.step()


@pytest.mark.parametrize("case", REFERENCE["schedulers"], ids=named)
def test_rates_after_a_resume(case: Any) -> None:
    """From any step on, with a new scheduler of a new optimizer."""
    if "error" in case:
        pytest.skip("it is refused")
    for cut in range(0, len(case["lr_of_step"]), 3):
        before = scheduler(case["scheduler"], optimizer())
        for _ in range(cut):
            before.step()
        own = optimizer()
        after = scheduler(case["scheduler"], own)
        after.load_state_dict(copy.deepcopy(before.state_dict()))
        for expected in case["lr_of_step"][cut:]:
            assert rates(own) == pytest.approx([expected], abs=1e-6)
            after.step()


@pytest.mark.parametrize("case", REFERENCE["param_groups"], ids=named)
def test_groups(case: Any) -> None:
    """ScalePerParamLR heeds adjust_learning_rate, others do not."""
    own = optimizer(*({key: value for key, value in group.items() if value is not None} for group in case["groups"]))
    made_here = scheduler(case["scheduler"], own)
    for expected in case["lr_of_step"]:
        assert rates(own) == pytest.approx(expected, abs=1e-6)
        made_here.step()


@pytest.mark.parametrize(
    ("tags", "expected"),
    [(None, [1, 1, 1]), ("a", [1, 9, 9]), (["a", "b"], [1, 1, 9]), (["b", None], [9, 1, 1]), ([], [9, 9, 9])],
)
def test_tags(tags: Any, expected: list[int]) -> None:
    """Only groups with one of the tags are scheduled."""
    own = optimizer({"tags": "a"}, {"tags": ["b", "c"]}, {})
    schedulers.ConstantLR(own, 1.0, param_group_tags=tags).step()
    assert rates(own) == expected


def test_chained() -> None:
    """The first one's value, times what the others make of their own; also in a sequence."""
    own = optimizer()
    warmup = schedulers.LinearLR(own, 0.0, 1.0, total_iters=4)
    decay = schedulers.ExponentialLR(own, 5.0, total_iters=1, decay_rate=0.5)
    chained = schedulers.ChainedScheduler(own, [warmup, decay])
    found = [rates(own)[0]]
    for _ in range(4):
        chained.step()
        found += rates(own)
    assert found == pytest.approx([0, 0.25 / 2, 0.5 / 4, 0.75 / 8, 1 / 16])
    nested = schedulers.SequentialLR(own, [schedulers.ConstantLR(own, 7.0, 2), chained])
    nested.step()
    assert rates(own) == [7.0]
    for _ in range(2):
        nested.step()
    assert rates(own) == pytest.approx([0.125])


def test_one_cycle_that_only_rises() -> None:
    """After its last step, which is that of the highest rate, it has a value too."""
    own = optimizer()
    cycle = schedulers.OneCycleLR(own, 0.1, 1.0, total_steps=4, pct_start=1.0, anneal_strategy="linear")
    found = rates(own)
    for _ in range(4):
        cycle.step()
        found += rates(own)
    assert found == pytest.approx([0.1, 0.4, 0.7, 1.0, 1.3])


def test_weight_decay() -> None:
    """The weight decay has schedulers of its own, beside those of the rate."""
    own = optimizer({"tags": "decayed"}, {})
    several = [
        schedulers.CosineDecayWD(own, 0.4, 0.2, total_iters=4, param_group_tags="decayed"),
        schedulers.LinearLR(own, 1.0, 0.0, total_iters=4),
    ]
    for _ in range(2):
        for each in several:
            each.step()
    assert [group["weight_decay"] for group in own.param_groups] == pytest.approx([0.3, 0])
    assert rates(own) == [0.5, 0.5]
    assert [schedulers.LinearWD(own, 1, 0, 2).value(step) for step in range(4)] == [1, 0.5, 0, 0]
    assert schedulers.ConstantWD(own, 0.5).value(7) == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda own: schedulers.LinearLR(own, 0.0, 1.0, 0),
        lambda own: schedulers.PiecewiseConstantLR(own, [1.0], [3]),
        lambda own: schedulers.PiecewiseConstantLR(own, [1.0, 2.0, 3.0], [3, 1]),
        lambda own: schedulers.SequentialLR(own, []),
        lambda own: schedulers.SequentialLR(own, [schedulers.StepLR(own, 1.0, 2), schedulers.ConstantLR(own, 1.0)]),
        lambda own: schedulers.SequentialLR(own, [schedulers.ConstantLR(own, 1.0)], [2]),
        lambda own: schedulers.ChainedScheduler(
            own, [schedulers.ConstantLR(own, 1.0), schedulers.ConstantLR(own, 0.0)]
        ),
    ],
)
def test_what_makes_no_sense(make: Any) -> None:
    """Wrong arguments are errors at once."""
    with pytest.raises(ValueError, match=r"\. [A-Z]"):
        make(optimizer())


def test_in_a_training(tmp_path: Path) -> None:
    """A resumed training has the rates of one that never stopped; a state that is none is refused."""

    def sequence(own: torch.optim.Optimizer) -> Any:
        parts = [schedulers.LinearLR(own, 0.0, 0.1, 3), schedulers.CosineDecayLR(own, 0.1, 0.01, 6)]
        return schedulers.SequentialLR(own, parts)

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, model: Any, optimizer: Any) -> None:
            seen.append(optimizer.param_groups[0]["lr"])

    seen: list[float] = []
    for steps in (4, 10):
        loop = {"max_steps": steps, "eval_frequency": 0}
        trainer, _ = made(str(tmp_path / "parts"), Watch(), schedulers=sequence, loop=loop)
        trainer.fit(loader())
    parts, seen = seen, []
    trainer, _ = made(str(tmp_path / "whole"), Watch(), schedulers=sequence)
    trainer.fit(loader())
    assert parts == seen
    assert len(parts) == 10
    saved = load(tmp_path / "whole" / "checkpoint_10.mdl")
    saved["schedulers"] = [{"last_epoch": "x"}]
    save(saved, tmp_path / "x.mdl")
    with pytest.raises(InvalidCheckpointError, match="schedulers"):
        trainer.load_checkpoint(tmp_path / "x.mdl")


class Halving(schedulers.Scheduler):
    """A user's own class, with its own arguments."""

    def __init__(self, optimizer: torch.optim.Optimizer, first: float) -> None:
        self.first = first
        super().__init__(optimizer)

    def value(self, step: int) -> float:
        """Half of the value before."""
        return self.first / 2**step


class Doubled(Halving):
    """Inherits the arguments."""

    seen: dict[int, float] = {}  # noqa: RUF012  # not an argument

    def value(self, step: int) -> float:
        """Twice that."""
        return 2 * super().value(step)


@dataclass(eq=False)
class Table(schedulers.Scheduler):
    """A dataclass of a user."""

    otherwise: float = 1.0
    held: dict[int, float] = field(default_factory=dict)

    def value(self, step: int) -> float:
        """As in the table."""
        return self.held.get(step, self.otherwise)


def test_own_classes() -> None:
    """A class that is derived from a scheduler takes the arguments that Python has it take."""
    own = optimizer()
    for each, expected in ((Doubled(own, 3.0), 3.0), (Table(own, held={1: 0.5}), 0.5)):
        each.step()
        assert rates(own) == [expected]
