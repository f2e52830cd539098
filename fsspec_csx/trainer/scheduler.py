"""Scheduler: sets a value of an optimizer's parameter groups as a function of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from fsspec_csx.trainer.state_validation import check_count, to_count

Tags = str | Sequence[str | None] | None

_COUNTS = ("total_iters", "T_max", "T_0", "step_size", "warmup_steps", "total_steps", "step_size_up", "step_size_down")


@dataclass(eq=False)
class Scheduler:
    """Sets a value of the optimizer's groups when it is created, and at each ``step``. At its end the value stays.

    Subclasses define ``value``, or ``value_of`` if the groups differ. A scheduler applies to groups with one of its
    tags (None stands for groups without tags), by default to all.
    """

    key: ClassVar[str] = "lr"

    optimizer: torch.optim.Optimizer
    param_group_tags: Tags = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            check_count(name, getattr(self, name, None))
        self.last_epoch = 0
        self._set()

    def value(self, step: int) -> float:
        """Return the value at a step, counted from 0."""
        return self.value_of({}, step)

    def value_of(self, group: Mapping[str, Any], step: int) -> float:
        """Return a group's value at a step."""
        return self.value(step)

    def applies_to(self, group: Mapping[str, Any]) -> bool:
        """Return whether the scheduler applies to a group."""
        if self.param_group_tags is None:
            return True
        tags = group.get("tags") or [None]
        wanted, own = ({each} if isinstance(each, str) else {*each} for each in (self.param_group_tags, tags))
        return not wanted.isdisjoint(own)

    def step(self) -> None:
        """Go to the next step."""
        self.last_epoch += 1
        self._set()

    def get_last_lr(self) -> list[Any]:
        """Return the current value of each group."""
        return [group[self.key] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the position, without the arguments."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a position; raise a ValueError if it is not a number of steps, a LookupError if it is missing."""
        self.last_epoch = to_count(state["last_epoch"])
        self._set()

    def _set(self) -> None:
        for group in filter(self.applies_to, self.optimizer.param_groups):
            value = self.value_of(group, self.last_epoch)
            if isinstance(group.get(self.key), torch.Tensor):
                group[self.key].fill_(value)
            else:
                group[self.key] = value
