"""EarlyExit: functions that end a training or a validation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.hooks import RemovableHandle

from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer


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
