"""Schedulers with the names and arguments of the Cerebras ModelZoo. Their values depend only on the step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Literal

from fsspec_csx.trainer.scheduler import Scheduler as Scheduler


@dataclass(eq=False)
class ConstantLR(Scheduler):
    """A constant value."""

    learning_rate: float
    total_iters: int | None = None

    def value(self, step: int) -> float:
        return self.learning_rate


@dataclass(eq=False)
class ConstantWD(Scheduler):
    """A constant weight decay."""

    key: ClassVar[str] = "weight_decay"

    val: float
    total_iters: int | None = None

    def value(self, step: int) -> float:
        return self.val


@dataclass(eq=False)
class _Decay(Scheduler):
    initial_learning_rate: float
    end_learning_rate: float
    total_iters: int


@dataclass(eq=False)
class PolynomialLR(_Decay):
    """From one value to another by a power of the fraction of remaining steps."""

    power: float = 1.0
    cycle: bool = False  # has no effect, as in the ModelZoo

    def value(self, step: int) -> float:
        left = math.pow(max(0.0, 1 - step / self.total_iters), self.power)
        return _linear(self.end_learning_rate, self.initial_learning_rate, left)


@dataclass(eq=False)
class LinearLR(_Decay):
    """From one value to another, linearly."""

    cycle: bool = False  # has no effect, as in the ModelZoo

    def value(self, step: int) -> float:
        return _linear(self.end_learning_rate, self.initial_learning_rate, max(0.0, 1 - step / self.total_iters))


class CosineDecayLR(_Decay):
    """From one value to another along half a cosine wave."""

    def value(self, step: int) -> float:
        return _cosine(self.initial_learning_rate, self.end_learning_rate, min(1.0, step / self.total_iters))


@dataclass(eq=False)
class _DecayWD(Scheduler):
    key: ClassVar[str] = "weight_decay"

    initial_val: float
    end_val: float
    total_iters: int


class LinearWD(_DecayWD):
    """From one weight decay to another, linearly."""

    def value(self, step: int) -> float:
        return _linear(self.end_val, self.initial_val, max(0.0, 1 - step / self.total_iters))


class CosineDecayWD(_DecayWD):
    """From one weight decay to another along half a cosine wave."""

    def value(self, step: int) -> float:
        return _cosine(self.initial_val, self.end_val, min(1.0, step / self.total_iters))


@dataclass(eq=False)
class ExponentialLR(Scheduler):
    """Multiplied by ``decay_rate`` over each ``total_iters`` steps; with ``staircase`` only at their end."""

    initial_learning_rate: float
    total_iters: int
    decay_rate: float
    staircase: bool = False

    def value(self, step: int) -> float:
        power: float = step // self.total_iters if self.staircase else step / self.total_iters
        return self.initial_learning_rate * math.pow(self.decay_rate, power)


@dataclass(eq=False)
class InverseExponentialTimeDecayLR(Scheduler):
    """Divided by 1 plus ``decay_rate`` times a power of the steps."""

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
    """Divided by the square root of the steps, or of ``warmup_steps`` while these are more."""

    initial_learning_rate: float = 1.0
    scale: float = 1.0
    warmup_steps: int = 1

    def value(self, step: int) -> float:
        return self.initial_learning_rate * self.scale / math.sqrt(max(step, self.warmup_steps))


@dataclass(eq=False)
class StepLR(Scheduler):
    """Multiplied by ``gamma`` after each ``step_size`` steps."""

    initial_learning_rate: float
    step_size: int
    gamma: float = 0.1

    def value(self, step: int) -> float:
        return float(self.initial_learning_rate * self.gamma ** (step // self.step_size))


@dataclass(eq=False)
class MultiStepLR(Scheduler):
    """Multiplied by ``gamma`` at each of the milestones."""

    initial_learning_rate: float
    gamma: float
    milestones: list[int]

    def value(self, step: int) -> float:
        return float(self.initial_learning_rate * self.gamma ** bisect_right(sorted(self.milestones), step))


@dataclass(eq=False)
class PiecewiseConstantLR(Scheduler):
    """A constant value up to each milestone, and another after the last one."""

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
    """Multiplied by ``coefficient`` at each step."""

    initial_learning_rate: float
    coefficient: float

    def value(self, step: int) -> float:
        return float(self.initial_learning_rate * self.coefficient**step)


@dataclass(eq=False)
class CosineAnnealingLR(Scheduler):
    """Down to ``eta_min`` in ``T_max`` steps along half a cosine wave, up again, and so on."""

    initial_learning_rate: float
    T_max: int
    eta_min: float = 0.0

    def value(self, step: int) -> float:
        return _cosine(self.initial_learning_rate, self.eta_min, step / self.T_max)


@dataclass(eq=False)
class CosineAnnealingWarmRestarts(Scheduler):
    """Down to ``eta_min`` in ``T_0`` steps along half a cosine wave, repeatedly."""

    initial_learning_rate: float
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        if self.T_mult != 1:
            msg = f"T_mult is 1 in the ModelZoo, not {self.T_mult!r}. Remove it, or use the scheduler of torch."
            raise ValueError(msg)
        super().__post_init__()

    def value(self, step: int) -> float:
        return _cosine(self.initial_learning_rate, self.eta_min, step % self.T_0 / self.T_0)


@dataclass(eq=False)
class CyclicLR(Scheduler):
    """Up to ``max_lr`` and down to ``base_lr``, linearly and repeatedly; ``mode`` may lower the peak over time."""

    base_lr: float
    max_lr: float
    step_size_up: int = 2000
    step_size_down: int | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: float = 1.0
    scale_mode: Literal["cycle", "iterations"] = "cycle"  # has no effect: the mode determines it

    def value(self, step: int) -> float:
        size = self.step_size_up + (self.step_size_down or self.step_size_up)
        cycles, within = divmod(step, size)
        height = min(within / self.step_size_up, (size - within) / (size - self.step_size_up))
        factor = {"triangular": 1.0, "triangular2": 0.5**cycles, "exp_range": self.gamma**step}[self.mode]
        return self.base_lr + (self.max_lr - self.base_lr) * height * factor


@dataclass(eq=False)
class OneCycleLR(Scheduler):
    """Up to ``max_lr`` in the fraction ``pct_start`` of all steps, and down to a small part of the first value."""

    initial_learning_rate: float
    max_lr: float
    total_steps: int = 1000
    pct_start: float = 0.3
    final_div_factor: float = 1e4
    three_phase: bool = False
    anneal_strategy: Literal["cos", "linear"] = "cos"

    def value(self, step: int) -> float:
        first, last = self.initial_learning_rate, self.initial_learning_rate / self.final_div_factor
        up = self.pct_start * self.total_steps
        points = [(0.0, first), (up - 1, self.max_lr), (self.total_steps - 1, last)]
        if self.three_phase:
            points.insert(2, (2 * up - 2, first))
        number = next(n for n, (end, _) in enumerate(points[1:], 1) if step <= end or end == points[-1][0])
        (begin, value), (end, other) = points[number - 1 : number + 1]
        curve = _cosine if self.anneal_strategy == "cos" else _linear
        return curve(value, other, (step - begin) / (end - begin))


def _linear(first: float, last: float, share: float) -> float:
    return first + (last - first) * share


def _cosine(first: float, last: float, share: float) -> float:
    """Interpolate between two values along half a cosine wave, which continues beyond the last one."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


@dataclass(eq=False)
class SequentialLR(Scheduler):
    """Runs schedulers one after the other, each from its own step 0.

    Args:
        schedulers: the schedulers in order.
        milestones: the steps at which the next one begins; by default the sums of their ``total_iters``.
    """

    schedulers: list[Scheduler]
    milestones: list[int] | None = None

    def __post_init__(self) -> None:
        if self.milestones is None:
            lengths = [getattr(each, "total_iters", None) for each in self.schedulers[:-1]]
            if not self.schedulers or None in lengths:
                msg = "Schedulers in a sequence must have total_iters, all but the last. Give these, or milestones."
                raise ValueError(msg)
            self.milestones = [*accumulate(each for each in lengths if each is not None)]
        if len(self.milestones) != len(self.schedulers) - 1:
            msg = "A sequence has a milestone between each two schedulers. Give one fewer than schedulers."
            raise ValueError(msg)
        super().__post_init__()

    def value_of(self, group: Mapping[str, Any], step: int) -> float:
        begins = [0, *(self.milestones or [])]
        number = bisect_right(begins, step) - 1
        return self.schedulers[number].value_of(group, step - begins[number])

    @property
    def total_iters(self) -> int | None:
        """The total number of steps; None if unknown."""
        last = getattr(self.schedulers[-1], "total_iters", None)
        return None if last is None else (self.milestones or [0])[-1] + int(last)


@dataclass(eq=False)
class ChainedScheduler(Scheduler):
    """The value of the first scheduler times the factor by which each other one has changed its initial value."""

    schedulers: list[Scheduler]

    def __post_init__(self) -> None:
        if not self.schedulers or any(not each.value(0) for each in self.schedulers[1:]):
            msg = "Chained schedulers, all but the first, must begin above 0. Give others, or a SequentialLR."
            raise ValueError(msg)
        super().__post_init__()

    def value_of(self, group: Mapping[str, Any], step: int) -> float:
        first, *others = self.schedulers
        return math.prod((each.value(step) / each.value(0) for each in others), start=first.value_of(group, step))


ChainedLR = ChainedScheduler


@dataclass(eq=False)
class ScalePerParamLR(Scheduler):
    """Multiplies another scheduler's value by the ``adjust_learning_rate`` of each group that has one."""

    scheduler: Scheduler

    def value_of(self, group: Mapping[str, Any], step: int) -> float:
        factor = group.get("adjust_learning_rate")
        return self.scheduler.value_of(group, step) * (1.0 if factor is None else factor)

    @property
    def total_iters(self) -> int | None:
        """The total number of steps of the other scheduler."""
        return getattr(self.scheduler, "total_iters", None)


_KNOWN = [each for each in globals().items() if isinstance(each[1], type) and issubclass(each[1], Scheduler)]
__all__ = [name for name, _ in _KNOWN if not name.startswith("_")]
