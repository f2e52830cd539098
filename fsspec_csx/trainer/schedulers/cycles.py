"""Schedulers of the learning rate that go up and down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fsspec_csx.trainer.schedulers.base import Scheduler
from fsspec_csx.trainer.schedulers.decays import between


@dataclass(eq=False)
class CosineAnnealingLR(Scheduler):
    """Down to ``eta_min`` in ``T_max`` steps by half a wave of a cosine, up again, and so on."""

    initial_learning_rate: float
    T_max: int
    eta_min: float = 0.0

    def value(self, step: int) -> float:
        return between(self.initial_learning_rate, self.eta_min, step / self.T_max)


@dataclass(eq=False)
class CosineAnnealingWarmRestarts(Scheduler):
    """Down to ``eta_min`` in ``T_0`` steps by half a wave of a cosine, again and again."""

    initial_learning_rate: float
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        if self.T_mult != 1:
            msg = f"T_mult is 1 in the ModelZoo, not {self.T_mult!r}. Leave it away, or use the scheduler of torch."
            raise ValueError(msg)
        super().__post_init__()

    def value(self, step: int) -> float:
        return between(self.initial_learning_rate, self.eta_min, step % self.T_0 / self.T_0)


@dataclass(eq=False)
class CyclicLR(Scheduler):
    """Up to ``max_lr`` and down to ``base_lr`` by equal steps, in the end less high by ``mode``."""

    base_lr: float
    max_lr: float
    step_size_up: int = 2000
    step_size_down: int | None = None
    mode: Literal["triangular", "triangular2", "exp_range"] = "triangular"
    gamma: float = 1.0
    scale_mode: Literal["cycle", "iterations"] = "cycle"  # it follows from the mode

    def value(self, step: int) -> float:
        size = self.step_size_up + (self.step_size_down or self.step_size_up)
        cycles, within = divmod(step, size)
        height = min(within / self.step_size_up, (size - within) / (size - self.step_size_up))
        factor = {"triangular": 1.0, "triangular2": 0.5**cycles, "exp_range": self.gamma**step}[self.mode]
        return self.base_lr + (self.max_lr - self.base_lr) * height * factor


@dataclass(eq=False)
class OneCycleLR(Scheduler):
    """Up to ``max_lr`` in ``pct_start`` of all steps, and down to a small part of the first value."""

    initial_learning_rate: float
    max_lr: float
    total_steps: int = 1000
    pct_start: float = 0.3
    final_div_factor: float = 1e4
    three_phase: bool = False
    anneal_strategy: Literal["cos", "linear"] = "cos"

    def value(self, step: int) -> float:
        first, top, last = self.initial_learning_rate, self.max_lr, self.initial_learning_rate / self.final_div_factor
        up = self.pct_start * self.total_steps
        ends = [(up - 1, first, top), (self.total_steps - 1, top, last)]
        if self.three_phase:
            ends[1:] = [(2 * up - 2, top, first), (self.total_steps - 1, first, last)]
        begun = 0.0
        for end, value, other in ends:
            if step <= end or end == ends[-1][0]:
                share = (step - begun) / (end - begun)
                return (
                    between(value, other, share) if self.anneal_strategy == "cos" else value + (other - value) * share
                )
            begun = end
        raise AssertionError
