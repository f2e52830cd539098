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
