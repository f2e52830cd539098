"""How long to train, and how often to validate; functions that end a training or a validation early."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sized
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.hooks import RemovableHandle

from fsspec_csx.trainer.callback import Callback
from fsspec_csx.trainer.state_validation import check_count

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer


@dataclass(eq=False, repr=False)
class ValidationLoop(Callback):
    """How long to validate.

    Args:
        eval_steps: the number of batches in each validation; None for all.

    Attributes:
        metrics: the means of ``loss`` and of the model's other numbers in the last validation, over the batches of all
            processes.
    """

    eval_steps: int | None = None

    def __post_init__(self) -> None:
        check_count("eval_steps", self.eval_steps)
        self.metrics: dict[str, float] = {}


@dataclass(eq=False, repr=False)
class TrainingLoop(Callback):
    """How long to train, and how often to validate.

    Give the length in steps or in epochs. Steps are those of the optimizer.

    Args:
        num_steps: the number of steps in each call of ``fit``.
        max_steps: the step at which to end, counted from the beginning of the run, across resumes.
        num_epochs: the number of epochs, counted in the same way; by default 1.
        steps_per_epoch: the number of steps in an epoch, to shorten it or if the data have no length.
        eval_frequency: the number of steps between validations, or a fraction (up to 1.0) of the steps that ``fit``
            makes; 0 or None for no validation. The last step is always validated.
        eval_steps: the number of batches in each validation; None for all.
        grad_accum_steps: the number of batches in a step.

    Raises:
        ValueError: for invalid numbers.
    """

    num_steps: int | None = None
    max_steps: int | None = None
    num_epochs: int | None = None
    steps_per_epoch: int | None = None
    eval_frequency: int | float | None = 1.0
    eval_steps: int | None = None
    grad_accum_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("num_steps", "max_steps", "num_epochs", "steps_per_epoch", "grad_accum_steps"):
            check_count(name, getattr(self, name))
        in_steps = self.num_steps is not None or self.max_steps is not None
        if self.num_epochs is not None and in_steps:
            msg = "A loop has a number of epochs or of steps, not both. Remove one of them."
            raise ValueError(msg)
        frequency = self.eval_frequency or 0
        if not frequency >= 0 or (isinstance(frequency, float) and frequency > 1):
            msg = f"eval_frequency is a number of steps, or a fraction up to 1.0, not {frequency}. Give 0 for none."
            raise ValueError(msg)
        self.num_epochs = self.num_epochs if in_steps else self.num_epochs or 1
        self.val_loop = ValidationLoop(self.eval_steps)

    def last_step(self, dataloader: Any, step: int) -> int:
        """Return the step at which to end; raise a ValueError for epochs of data without a length."""
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
        """Return whether a validation follows a step, counted from 1, among the steps of ``fit``."""
        if not self.eval_frequency:
            return False
        if step >= steps.stop:
            return True
        if isinstance(self.eval_frequency, int):
            return step % self.eval_frequency == 0
        return (step - steps.start) % max(1, round(self.eval_frequency * len(steps))) == 0


class EarlyExit(Callback):
    """Ends a training after a step, or a validation after a batch, when a registered function returns True.

    Each trainer has one, ``trainer.early_exit``. An ended training is validated and saved as after its last step. The
    functions are dropped at the end of ``fit``, ``validate`` and ``validate_all``.
    """

    def __init__(self) -> None:
        self._functions: OrderedDict[int, Callable[[], Any]] = OrderedDict()
        self._exits = False
        self._depth = 0

    def register(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> RemovableHandle:
        """Register a function and its arguments; it returns True to end the training or the validation.

        Returns a handle whose ``remove`` drops the function. Raises a TypeError if it is not callable.
        """
        if not callable(fn):
            msg = f"EarlyExit calls functions, not {type(fn).__name__}. Register a function that returns True to end."
            raise TypeError(msg)
        handle = RemovableHandle(self._functions)
        self._functions[handle.id] = partial(fn, *args, **kwargs)
        return handle

    def reset_exit_fns(self) -> None:
        """Drop all functions."""
        self._functions.clear()
        self._exits = False

    @property
    def should_exit(self) -> bool:
        """Whether any function has returned True."""
        self._exits = self._exits or any(function() for function in self._functions.values())
        return self._exits

    def on_enter_fit(self, trainer: Trainer, stack: ExitStack, *args: Any, **kwargs: Any) -> None:
        self._depth += 1
        stack.callback(self._leave)

    on_enter_validate = on_enter_validate_all = on_enter_fit

    def _leave(self) -> None:
        self._depth -= 1
        if not self._depth:
            self.reset_exit_fns()


def length_of(dataloader: Any) -> int | None:
    try:
        return len(dataloader) if isinstance(dataloader, Sized) else None
    except TypeError:  # an iterable dataset has no length
        return None


def as_list(value: Any) -> list[Any]:
    """Return a list of one value, or of the values of a list or tuple; an empty list for None."""
    if value is None:
        return []
    return [*value] if isinstance(value, (list, tuple)) else [value]
