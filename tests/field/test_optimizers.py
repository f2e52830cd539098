"""Optimizers with the ModelZoo's names compute the same as its own, also after a resume."""

from __future__ import annotations

import inspect
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training import loader, made

from fsspec_csx.trainer import optimizers

REFERENCE = json.loads((Path(__file__).parents[1] / "data" / "optimizers.json").read_text())["optimizers"]


# Arguments and defaults of cerebras.pytorch.optim 2.10; lr has none in SGD and Adafactor.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ASGD": {"lr": 0.01, "lambd": 1e-4, "alpha": 0.75, "t0": 1e6, "weight_decay": 0, "maximize": False},
    "Adadelta": {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0, "maximize": False},
    "Adafactor": {
        "clip_threshold": 1.0,
        "decay_rate": -0.8,
        "beta1": None,
        "weight_decay": 0.0,
        "scale_parameter": True,
        "relative_step": False,
        "warmup_init": False,
    },
    "Adagrad": {"lr": 0.01, "lr_decay": 0, "weight_decay": 0, "initial_accumulator_value": 0, "eps": 1e-6},
    "AdamW": {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0,
        "correct_bias": True,
        "amsgrad": False,
    },
    "Adam": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0, "amsgrad": False},
    "Adamax": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0, "maximize": False},
    "Lamb": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0, "adam": False},
    "Lion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0},
    "Muon": {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95, "nesterov": True, "ns_steps": 5},
    "NAdam": {"lr": 2e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "momentum_decay": 4e-3},
    "RAdam": {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0},
    "RMSprop": {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0, "momentum": 0, "centered": False},
    "Rprop": {"lr": 1e-3, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)},
    "SGD": {"momentum": 0, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False},
}


def test_defaults() -> None:
    """The arguments and their defaults are the ModelZoo's."""
    parameters = [torch.nn.Parameter(torch.zeros(2, 2))]
    for name, expected in DEFAULTS.items():
        kind = getattr(optimizers, name)
        found = {each.name: each.default for each in inspect.signature(kind).parameters.values()}
        assert {key: found.get(key, ...) for key in expected} == expected, name
        for key in ("lr", "eps", "betas"):
            assert kind(parameters).defaults.get(key, found.get(key)) == found.get(key) or name == "Adafactor"
    for argument in ({"beta1": 0.9}, {"scale_parameter": False}, {"relative_step": True}, {"warmup_init": True}):
        with pytest.raises(ValueError, match="Leave them out"):
            optimizers.Adafactor(parameters, **argument)


def named(case: Any) -> str:
    """What a case is called."""
    return json.dumps(case["optimizer"])[:60]


def optimizer(case: Any, values: Any) -> tuple[torch.nn.Parameter, Any]:
    """A parameter, and the optimizer of a case for it."""
    ((name, arguments),) = case["optimizer"].items()
    parameter = torch.nn.Parameter(torch.tensor(values))
    return parameter, getattr(optimizers, name)([parameter], **arguments)


@pytest.mark.parametrize("case", REFERENCE, ids=named)
def test_steps(case: Any) -> None:
    """The parameters after each step are those of the reference."""
    parameter, own = optimizer(case, case["start"])
    for gradient, expected in zip(case["gradients"], case["after"], strict=True):
        parameter.grad = torch.tensor(gradient)
        own.step()
        torch.testing.assert_close(parameter.detach(), torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", REFERENCE, ids=named)
def test_steps_after_a_resume(case: Any) -> None:
    """From any step on, by a new optimizer with the state of the other, through a file."""
    for cut in range(1, len(case["after"])):
        parameter, own = optimizer(case, case["start"])
        for gradient in case["gradients"][:cut]:
            parameter.grad = torch.tensor(gradient)
            own.step()
        file = io.BytesIO()
        torch.save(own.state_dict(), file)
        file.seek(0)
        values = parameter.detach().tolist()
        parameter, own = optimizer(case, values)
        own.load_state_dict(torch.load(file))
        for gradient, expected in zip(case["gradients"][cut:], case["after"][cut:], strict=True):
            parameter.grad = torch.tensor(gradient)
            own.step()
            torch.testing.assert_close(parameter.detach(), torch.tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", DEFAULTS)
def test_arguments(name: str) -> None:
    """learning_rate is another name of lr, and wrong numbers are refused."""
    kind = getattr(optimizers, name)
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    assert kind([parameter], learning_rate=0.25).param_groups[0]["lr"] == 0.25
    assert kind([parameter], 0.25).param_groups[0]["lr"] == 0.25
    with pytest.raises(ValueError, match=r"(?i)learning rate|lr is"):
        kind([parameter], lr=-1.0)


def test_what_makes_no_sense() -> None:
    """Arguments that exclude each other."""
    with pytest.raises(ValueError, match="amsgrad"):
        optimizers.AdamW([torch.ones(1)], correct_bias=False, amsgrad=True)
    with pytest.raises(ValueError, match="betas"):
        optimizers.Lion([torch.ones(1)], betas=(0.9, 1.0))


@pytest.mark.parametrize("name", ["AdamW", "Lion", "Lamb", "NAdam", "Adafactor"])
def test_in_a_training(tmp_path: Path, name: str) -> None:
    """A training that is stopped and resumed is one that never stopped."""

    def run(root: str, steps: int) -> list[float]:
        kind = getattr(optimizers, name)
        options = {"correct_bias": False} if name == "AdamW" else {}
        loop = {"max_steps": steps, "eval_frequency": 0}
        trainer, losses = made(
            str(tmp_path / root), optimizer=lambda model: kind(model.parameters(), lr=0.01, **options), loop=loop
        )
        trainer.fit(loader())
        return losses

    whole = run("whole", 8)
    assert run("parts", 3) + run("parts", 8) == whole


def test_eps_of_adam() -> None:
    """The ModelZoo adds eps before the bias of the mean square is corrected, also for parameters of other ages."""
    for kind in (optimizers.Adam, optimizers.AdamW):
        values = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        made = kind(values, lr=0.1, eps=1e-3)
        gradient = torch.tensor([0.05, 0.001])
        for age in (1, 2):
            values[0].grad = gradient.clone()
            values[1].grad = gradient.clone() if age == 2 else None
            before = [each.detach().clone() for each in values]
            made.step()
            for value, was, steps in zip(values, before, (age, age - 1), strict=True):
                if steps:
                    mean, square = gradient * (1 - 0.9**steps), gradient.square() * (1 - 0.999**steps)
                    correction = (1 - 0.999**steps) ** 0.5 / (1 - 0.9**steps)
                    expected = was - 0.1 * correction * mean / (square.sqrt() + 1e-3)
                    torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=1e-7)
        assert made.param_groups[0]["eps"] == 1e-3
        assert len(made.param_groups) == 1


def test_muon() -> None:
    """It is torch's, with the rates of the ModelZoo's, which grow with the longer side of a matrix."""
    start, gradients = torch.randn(4, 6), torch.randn(4, 4, 6)
    reference = [torch.nn.Parameter(start.clone())]
    scale = 0.2 * 6**0.5
    torch_own = torch.optim.Muon(reference, lr=0.02 * scale, weight_decay=0.01 / scale)
    found = torch.nn.Parameter(start.clone())
    own = optimizers.Muon([found])
    for gradient in gradients:
        reference[0].grad, found.grad = gradient.clone(), gradient.clone()
        torch_own.step()
        own.step()
    torch.testing.assert_close(found, reference[0])
    for shape in ((3,), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"only matrices.*Set requires_grad"):
            optimizers.Muon([found, torch.nn.Parameter(torch.ones(shape))])
