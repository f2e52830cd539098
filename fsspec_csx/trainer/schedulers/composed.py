"""Schedulers that are made of others, whose steps they count for them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fsspec_csx.trainer.schedulers.base import Scheduler


@dataclass(eq=False)
class SequentialLR(Scheduler):
    """One scheduler after the other, each from its own step 0.

    Args:
        schedulers: in their order.
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
        """Steps of all together, if they are known."""
        last = getattr(self.schedulers[-1], "total_iters", None)
        return None if last is None else (self.milestones or [0])[-1] + int(last)


@dataclass(eq=False)
class ChainedScheduler(Scheduler):
    """All schedulers at once: the value of the first, times what each of the others makes of its initial value."""

    schedulers: list[Scheduler]

    def __post_init__(self) -> None:
        if not self.schedulers or any(not each.value(0) for each in self.schedulers[1:]):
            msg = "Chained schedulers, all but the first, must begin above 0. Give others, or a SequentialLR."
            raise ValueError(msg)
        super().__post_init__()

    def value_of(self, group: Mapping[str, Any], step: int) -> float:
        first, *others = self.schedulers
        value = first.value_of(group, step)
        for each in others:
            value *= each.value(step) / each.value(0)
        return value


@dataclass(eq=False)
class ScalePerParamLR(Scheduler):
    """Another scheduler times the ``adjust_learning_rate`` of each group that has one."""

    scheduler: Scheduler

    def value_of(self, group: Mapping[str, Any], step: int) -> float:
        factor = group.get("adjust_learning_rate")
        return self.scheduler.value_of(group, step) * (1.0 if factor is None else factor)

    @property
    def total_iters(self) -> int | None:
        """Those of the other one."""
        return getattr(self.scheduler, "total_iters", None)
