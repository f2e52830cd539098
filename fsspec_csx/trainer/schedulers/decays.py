"""Schedulers of the learning rate, or of the weight decay, that go one way."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar

from fsspec_csx.trainer.schedulers.base import Scheduler


@dataclass(eq=False)
class ConstantLR(Scheduler):
    """One value."""

    learning_rate: float
    total_iters: int | None = None

    def value(self, step: int) -> float:
        return self.learning_rate


@dataclass(eq=False)
class PolynomialLR(Scheduler):
    """From one value to another by a power of the steps that are left."""

    initial_learning_rate: float
    end_learning_rate: float
    total_iters: int
    power: float = 1.0
    cycle: bool = False  # has no effect, as in the ModelZoo

    def value(self, step: int) -> float:
        left = max(0.0, 1 - step / self.total_iters)
        return self.end_learning_rate + (self.initial_learning_rate - self.end_learning_rate) * math.pow(
            left, self.power
        )


@dataclass(eq=False)
class LinearLR(Scheduler):
    """From one value to another by equal steps."""

    initial_learning_rate: float
    end_learning_rate: float
    total_iters: int
    cycle: bool = False  # has no effect, as in the ModelZoo

    def value(self, step: int) -> float:
        left = max(0.0, 1 - step / self.total_iters)
        return self.end_learning_rate + (self.initial_learning_rate - self.end_learning_rate) * left


@dataclass(eq=False)
class CosineDecayLR(Scheduler):
    """From one value to another by half a wave of a cosine."""

    initial_learning_rate: float
    end_learning_rate: float
    total_iters: int

    def value(self, step: int) -> float:
        return between(self.initial_learning_rate, self.end_learning_rate, min(1.0, step / self.total_iters))


@dataclass(eq=False)
class ExponentialLR(Scheduler):
    """Times ``decay_rate`` in each ``total_iters`` steps, and on; at once if ``staircase``."""

    initial_learning_rate: float
    total_iters: int
    decay_rate: float
    staircase: bool = False

    def value(self, step: int) -> float:
        power: float = step // self.total_iters if self.staircase else step / self.total_iters
        return self.initial_learning_rate * math.pow(self.decay_rate, power)


@dataclass(eq=False)
class InverseExponentialTimeDecayLR(Scheduler):
    """Divided by 1 and ``decay_rate`` times a power of the steps."""

    initial_learning_rate: float
    step_exponent: int
    total_iters: int
    decay_rate: float
    staircase: bool = False

    def value(self, step: int) -> float:
        share = math.pow(step, self.step_exponent) / self.total_iters
        return self.initial_learning_rate / (1 + self.decay_rate * (math.floor(share) if self.staircase else share))


@dataclass(eq=False)
class InverseSquareRootDecayLR(Scheduler):
    """Divided by the square root of the steps, or of ``warmup_steps`` as long as these are more."""

    initial_learning_rate: float = 1.0
    scale: float = 1.0
    warmup_steps: int = 1

    def value(self, step: int) -> float:
        return self.initial_learning_rate * self.scale / math.sqrt(max(step, self.warmup_steps))


@dataclass(eq=False)
class StepLR(Scheduler):
    """Times ``gamma`` after each ``step_size`` steps."""

    initial_learning_rate: float
    step_size: int
    gamma: float = 0.1

    def value(self, step: int) -> float:
        return float(self.initial_learning_rate * self.gamma ** (step // self.step_size))


@dataclass(eq=False)
class MultiStepLR(Scheduler):
    """Times ``gamma`` at each of the milestones."""

    initial_learning_rate: float
    gamma: float
    milestones: list[int]

    def value(self, step: int) -> float:
        return float(self.initial_learning_rate * self.gamma ** bisect_right(sorted(self.milestones), step))


@dataclass(eq=False)
class PiecewiseConstantLR(Scheduler):
    """One value up to each of the milestones, and one after the last."""

    learning_rates: list[float]
    milestones: list[int]

    def __post_init__(self) -> None:
        if len(self.learning_rates) != len(self.milestones) + 1 or sorted(self.milestones) != [*self.milestones]:
            msg = "There must be one value more than milestones, and these must rise. Give as many."
            raise ValueError(msg)
        super().__post_init__()

    def value(self, step: int) -> float:
        return self.learning_rates[bisect_right(self.milestones, step)]


@dataclass(eq=False)
class MultiplicativeLR(Scheduler):
    """Times ``coefficient`` at each step."""

    initial_learning_rate: float
    coefficient: float

    def value(self, step: int) -> float:
        return float(self.initial_learning_rate * self.coefficient**step)


@dataclass(eq=False)
class ConstantWD(Scheduler):
    """One value."""

    key: ClassVar[str] = "weight_decay"

    val: float
    total_iters: int | None = None

    def value(self, step: int) -> float:
        return self.val


@dataclass(eq=False)
class _Decay(Scheduler):
    key: ClassVar[str] = "weight_decay"

    initial_val: float
    end_val: float
    total_iters: int


class LinearWD(_Decay):
    """From one value to another by equal steps."""

    def value(self, step: int) -> float:
        return self.end_val + (self.initial_val - self.end_val) * max(0.0, 1 - step / self.total_iters)


class CosineDecayWD(_Decay):
    """From one value to another by half a wave of a cosine."""

    def value(self, step: int) -> float:
        return between(self.initial_val, self.end_val, min(1.0, step / self.total_iters))


def between(first: float, last: float, share: float) -> float:
    """From one value to another by half a wave of a cosine; it goes on beyond."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2
