"""Schedulers of the weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fsspec_csx.trainer.schedulers.base import Scheduler
from fsspec_csx.trainer.schedulers.decays import between


@dataclass(eq=False)
class ConstantWD(Scheduler):
    """One value."""

    key: ClassVar[str] = "weight_decay"

    val: float
    total_iters: int | None = None

    def value(self, step: int) -> float:
        return self.val


@dataclass(eq=False)
class LinearWD(Scheduler):
    """From one value to another by equal steps."""

    key: ClassVar[str] = "weight_decay"

    initial_val: float
    end_val: float
    total_iters: int

    def value(self, step: int) -> float:
        return self.end_val + (self.initial_val - self.end_val) * max(0.0, 1 - step / self.total_iters)


@dataclass(eq=False)
class CosineDecayWD(Scheduler):
    """From one value to another by half a wave of a cosine."""

    key: ClassVar[str] = "weight_decay"

    initial_val: float
    end_val: float
    total_iters: int

    def value(self, step: int) -> float:
        return between(self.initial_val, self.end_val, min(1.0, step / self.total_iters))
