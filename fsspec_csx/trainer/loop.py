"""How long to train, and how often to validate."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from fsspec_csx.trainer.callback import Callback


class ValidationLoop(Callback):
    """How long to validate.

    Args:
        eval_steps: batches of each validation; None for all.

    Attributes:
        metrics: of the last validation: the means over its batches, in all processes, of ``loss`` and of what else the
            model told in numbers.
    """

    def __init__(self, eval_steps: int | None = None) -> None:
        _check_count("eval_steps", eval_steps)
        self.eval_steps = eval_steps
        self.metrics: dict[str, float] = {}


class TrainingLoop(Callback):
    """How long to train, and how often to validate.

    One of the first three says how long. Steps are those of the optimizer.

    Args:
        num_steps: steps of each call of ``fit``, whatever was trained before.
        max_steps: the step at which to end; those of a run that is resumed count.
        num_epochs: passes through the data, those of a run that is resumed counted; 1 if nothing else is given.
        steps_per_epoch: steps of a pass, where it is to be shorter than the data, or these have no length.
        eval_frequency: a whole number of steps between validations, or a fraction (up to 1.0) of the steps that ``fit``
            makes; 0 or None for no validation. The last step is followed by one in any case.
        eval_steps: batches of each validation; None for all.
        grad_accum_steps: batches for each step.

    Raises:
        ValueError: for numbers that make no sense.
    """

    def __init__(
        self,
        num_steps: int | None = None,
        max_steps: int | None = None,
        num_epochs: int | None = None,
        steps_per_epoch: int | None = None,
        eval_frequency: int | float | None = 1.0,
        eval_steps: int | None = None,
        grad_accum_steps: int = 1,
    ) -> None:
        counts = {"num_steps": num_steps, "max_steps": max_steps, "num_epochs": num_epochs}
        for name, value in {**counts, "steps_per_epoch": steps_per_epoch, "grad_accum_steps": grad_accum_steps}.items():
            _check_count(name, value)
        if num_epochs is not None and (num_steps is not None or max_steps is not None):
            msg = "A loop has a number of epochs or of steps, not both. Leave one of them away."
            raise ValueError(msg)
        if isinstance(eval_frequency, float) and not 0 <= eval_frequency <= 1:
            msg = f"eval_frequency is a number of steps or a fraction, not {eval_frequency}. Give one up to 1.0."
            raise ValueError(msg)
        if isinstance(eval_frequency, int) and eval_frequency < 0:
            msg = f"eval_frequency cannot be negative, as {eval_frequency} is. Give 0 for no validation."
            raise ValueError(msg)
        self.num_steps = num_steps
        self.max_steps = max_steps
        self.num_epochs = 1 if all(value is None for value in counts.values()) else num_epochs
        self.steps_per_epoch = steps_per_epoch
        self.eval_frequency = eval_frequency
        self.grad_accum_steps = grad_accum_steps
        self.val_loop = ValidationLoop(eval_steps)

    def last_step(self, dataloader: Any, step: int) -> int:
        """The step at which to end.

        Args:
            dataloader: whose length, in batches, counts where epochs do.
            step: the one to begin with.

        Raises:
            ValueError: if epochs are to be counted, and the data have no length.
        """
        if self.num_steps is not None:
            return step + self.num_steps
        if self.max_steps is not None:
            return self.max_steps
        assert self.num_epochs is not None
        return self.num_epochs * self._steps_of_an_epoch(dataloader)

    def _steps_of_an_epoch(self, dataloader: Any) -> int:
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        length = length_of(dataloader)
        if length is None:
            msg = "The data have no length, so their epochs cannot be counted. Give steps_per_epoch, or max_steps."
            raise ValueError(msg)
        if length < self.grad_accum_steps:
            msg = (
                f"The data have {length} batches, fewer than the {self.grad_accum_steps} of one step. "
                "Give more data, or a smaller grad_accum_steps."
            )
            raise ValueError(msg)
        return length // self.grad_accum_steps

    def validates_after(self, step: int, steps: range) -> bool:
        """Whether a validation follows a step, of those that ``fit`` is to make.

        A fraction is one of these, counted from the first of them.
        """
        if not self.eval_frequency:
            return False
        if step >= steps.stop:
            return True
        if isinstance(self.eval_frequency, int):
            return step % self.eval_frequency == 0
        return (step - steps.start) % max(1, round(self.eval_frequency * len(steps))) == 0


def length_of(dataloader: Any) -> int | None:
    """Batches in a data loader; None if it does not know."""
    try:
        return len(dataloader) if isinstance(dataloader, Sized) else None
    except TypeError:  # of an iterable dataset
        return None


def _check_count(name: str, value: Any) -> None:
    if value is not None and (type(value) is not int or value < 1):
        msg = f"{name} is a whole number from 1 on, not {value!r}. Give such a number."
        raise ValueError(msg)
