"""A resumed training is exactly like an uninterrupted one."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from thinning import thinned
from torch.utils.data import DataLoader, IterableDataset
from training import loader, made

from fsspec_csx.trainer import Callback, Trainer, random_states


class StopError(Exception):
    """Ends a training in its midst."""


class StopAfter(Callback):
    """Raises after a step, as if the machine were gone."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, model: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise StopError


def resumed(root: str, data: Any, stop: int, **options: Any) -> list[float]:
    """The losses of a training that is stopped after a step, and resumed by a trainer of another seed."""
    trainer, before = made(root, StopAfter(stop), **options)
    with pytest.raises(StopError):
        trainer.fit(data(), loader(8) if options.get("loop", {}).get("eval_frequency") else None)
    torch.manual_seed(99)
    random.seed(99)
    trainer, after = made(root, **{**options, "seed": 12345})
    trainer.fit(data(), loader(8) if options.get("loop", {}).get("eval_frequency") else None)
    accumulated = options.get("loop", {}).get("grad_accum_steps", 1)
    saved = stop - stop % 2
    return before[: saved * accumulated] + after


def whole(root: str, data: Any, **options: Any) -> list[float]:
    """The losses of a training that nothing stops."""
    trainer, losses = made(root, **options)
    trainer.fit(data(), loader(8) if options.get("loop", {}).get("eval_frequency") else None)
    return losses


@pytest.mark.parametrize("stop", thinned([2, 5, 6, 7], 6))
@pytest.mark.parametrize("workers", [0, 2])
def test_exact(tmp_path: Path, stop: int, workers: int) -> None:
    """From the middle of an epoch, from its end, and with workers that draw random numbers."""
    expected = whole(str(tmp_path / "a"), lambda: loader(num_workers=workers))
    assert len(expected) == 10
    assert resumed(str(tmp_path / "b"), lambda: loader(num_workers=workers), stop) == expected


def test_exact_on_any_filesystem(root: str) -> None:
    """Local, in memory and on S3."""
    assert resumed(f"{root}/b", loader, 5) == whole(f"{root}/a", loader)


@pytest.mark.parametrize(
    "loop",
    [
        {"num_epochs": 2, "eval_frequency": 0},
        {"max_steps": 5, "grad_accum_steps": 2, "eval_frequency": 0},
        {"max_steps": 10, "eval_frequency": 4},
        {"max_steps": 8, "steps_per_epoch": 3, "eval_frequency": 0},
    ],
    ids=str,
)
def test_exact_in_any_loop(tmp_path: Path, loop: dict[str, Any]) -> None:
    """By epochs, with accumulated gradients, with validations in between, and with short epochs."""
    expected = whole(str(tmp_path / "a"), loader, loop=loop)
    assert resumed(str(tmp_path / "b"), loader, 3, loop=loop) == expected


def test_exact_with_a_generator(tmp_path: Path) -> None:
    """A generator of the loader's own is where it would have been."""

    def data() -> Any:
        return loader(generator=torch.Generator().manual_seed(3))

    expected = whole(str(tmp_path / "a"), data)
    for stop in (5, 6, 9):
        assert resumed(str(tmp_path / f"b{stop}"), data, stop) == expected


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Samples without a known number."""

    def __iter__(self) -> Any:
        yield from (torch.randn(4) for _ in range(22))


def test_exact_without_a_length(tmp_path: Path) -> None:
    """Data that do not know how many they are."""

    def data() -> Any:
        return DataLoader(Stream(), batch_size=4)

    expected = whole(str(tmp_path / "a"), data)
    for stop in (4, 6, 7):
        assert resumed(str(tmp_path / f"b{stop}"), data, stop) == expected


class StopLater(Callback):
    """Raises some steps after the first of this process."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first: int | None = None

    def on_train_batch_start(self, trainer: Trainer, model: Any, batch: Any, batch_idx: int) -> None:
        self.first = trainer.global_step if self.first is None else self.first
        if trainer.global_step == self.first + self.steps:
            raise StopError


@pytest.mark.slow
def test_exact_after_many_interruptions(root: str) -> None:
    """A run that is stopped at random steps, again and again."""
    loop = {"max_steps": 30, "eval_frequency": 7}
    trainer, expected = made(f"{root}/whole", steps=None, loop=loop)
    trainer.fit(loader(), loader(8))
    generator = random.Random(1)
    losses: dict[int, float] = {}
    runs = 0
    while trainer.global_step < 30 or not runs:
        stop = StopLater(generator.randrange(4, 12))
        trainer, some = made(f"{root}/run", stop, steps=3, loop=loop)
        with contextlib.suppress(StopError):
            trainer.fit(loader(), loader(8))
        losses.update(enumerate(some, stop.first or 0))
        runs += 1
    assert runs > 3
    assert [losses[step] for step in range(30)] == expected


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64", "RandomState"])
def test_states_of_numpy(kind: str) -> None:
    """A generator of numpy continues from its state."""

    def make(seed: int) -> Any:
        made = getattr(np.random, kind)(seed)
        return made if kind == "RandomState" else np.random.Generator(made)

    generator = make(1)
    generator.bytes(5)
    state = random_states.state_of(generator)
    expected = generator.bytes(3000)
    other = make(2)
    random_states.set_state(other, state)
    assert other.bytes(3000) == expected
