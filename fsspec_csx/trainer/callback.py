"""Callback: hooks that the trainer calls during a run."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch.nn import Module
from torch.optim import Optimizer

if TYPE_CHECKING:
    from fsspec_csx.trainer.loop import TrainingLoop, ValidationLoop
    from fsspec_csx.trainer.trainer import Trainer


_BEGINNINGS = ("on_", "preprocess_", "postprocess_")
_ALIKE = 0.85
_OWN = "fsspec_csx."


class Callback:
    """The hooks of a run; they do nothing, and subclasses override those that they need.

    The docstring of a hook says when it is called, or what it may do.

    ``outputs`` is the model's output, as a dict with the key ``loss``; ``batch`` is on the trainer's device;
    ``batch_idx`` counts from 0 the batches of a validation, or of the training between two validations.
    """

    def pre_setup(self, trainer: Trainer) -> None:
        """Before the setup, and before credentials are looked up."""

    def setup(self, trainer: Trainer) -> None:
        """When the model, optimizer and schedulers exist."""

    def post_setup(self, trainer: Trainer) -> None:
        """After the setup of all callbacks."""

    def finalize(self) -> None:
        """When the trainer is deleted."""

    def on_enter_fit(
        self, trainer: Trainer, stack: ExitStack, train_dataloader: Any, val_dataloader: Any, loop: TrainingLoop
    ) -> None:
        """Before the checkpoint is loaded; contexts entered on the stack end with ``fit``."""

    def on_fit_start(self, trainer: Trainer, train_dataloader: Any, val_dataloader: Any, loop: TrainingLoop) -> None:
        """After the checkpoint was loaded."""

    def on_fit_end(self, trainer: Trainer, loop: TrainingLoop) -> None:
        """After the last step and the last validation."""

    def on_fit_exception(self, trainer: Trainer, exception: BaseException) -> None:
        """When ``fit`` ends with this exception."""

    def on_enter_train(
        self, trainer: Trainer, stack: ExitStack, train_dataloader: Any, loop: TrainingLoop, loop_idx: int
    ) -> None:
        """Before the steps between two validations; contexts entered on the stack end with them."""

    def on_train_start(
        self, trainer: Trainer, model: Module, train_dataloader: Any, loop: TrainingLoop, loop_idx: int
    ) -> None:
        """Before the steps between two validations; ``loop_idx`` counts these stretches of steps from 0."""

    def on_train_end(self, trainer: Trainer, model: Module, loop: TrainingLoop, loop_idx: int) -> None:
        """After a stretch of steps."""

    def on_train_exception(self, trainer: Trainer, exception: BaseException) -> None:
        """When a stretch of steps ends with this exception."""

    def on_train_batch_start(self, trainer: Trainer, model: Module, batch: Any, batch_idx: int) -> None:
        """Before a batch."""

    def on_train_batch_end(
        self, trainer: Trainer, model: Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        """After a batch; ``trainer.stepped`` says whether it completed a step."""

    def on_train_step_start(self, trainer: Trainer, model: Module, batch: Any) -> None:
        """Before the forward pass of a batch."""

    def on_train_step_end(self, trainer: Trainer, model: Module, outputs: dict[str, Any], batch: Any) -> None:
        """After the gradients of a batch were computed and, if the batch completes a step, were applied."""

    def on_before_forward(
        self, trainer: Trainer, model: Module, batch: Any, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        """Before the model is called with these arguments; a callback may change them."""

    def on_after_forward(self, trainer: Trainer, model: Module, outputs: dict[str, Any], batch: Any) -> None:
        """After the forward pass."""

    def on_before_backward(self, trainer: Trainer, model: Module, outputs: dict[str, Any]) -> None:
        """Before the gradients are computed."""

    def on_after_backward(self, trainer: Trainer, model: Module, outputs: dict[str, Any]) -> None:
        """After the gradients were computed."""

    def on_before_optimizer_step(self, trainer: Trainer, model: Module, optimizer: Optimizer) -> None:
        """Before the gradients are clipped and applied."""

    def on_after_optimizer_step(self, trainer: Trainer, model: Module, optimizer: Optimizer) -> None:
        """After the gradients were clipped and applied."""

    def on_before_optimizer_zero_grad(self, trainer: Trainer, model: Module, optimizer: Optimizer) -> None:
        """Before the gradients are reset."""

    def on_after_optimizer_zero_grad(self, trainer: Trainer, model: Module, optimizer: Optimizer) -> None:
        """After the gradients were reset."""

    def on_before_scheduler_step(self, trainer: Trainer, model: Module, optimizer: Optimizer, scheduler: Any) -> None:
        """Before a scheduler's step; schedulers step after each step of the optimizer."""

    def on_after_scheduler_step(self, trainer: Trainer, model: Module, optimizer: Optimizer, scheduler: Any) -> None:
        """After a scheduler's step."""

    def on_enter_validate(self, trainer: Trainer, stack: ExitStack, val_dataloader: Any, loop: ValidationLoop) -> None:
        """Before the checkpoint is loaded; contexts entered on the stack end with the validation."""

    def on_validate_start(self, trainer: Trainer, model: Module, val_dataloader: Any, loop: ValidationLoop) -> None:
        """Before the first batch."""

    def on_validate_end(self, trainer: Trainer, model: Module, loop: ValidationLoop) -> None:
        """After the last batch; ``loop.metrics`` holds the mean of each metric."""

    def on_validate_exception(self, trainer: Trainer, exception: BaseException) -> None:
        """When ``validate`` ends with this exception."""

    def on_validate_batch_start(self, trainer: Trainer, model: Module, batch: Any, batch_idx: int) -> None:
        """Before a batch."""

    def on_validate_batch_end(
        self, trainer: Trainer, model: Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        """After a batch."""

    def on_validate_step_start(self, trainer: Trainer, model: Module, batch: Any) -> None:
        """Before the forward pass of a batch."""

    def on_validate_step_end(self, trainer: Trainer, model: Module, outputs: dict[str, Any], batch: Any) -> None:
        """After the forward pass of a batch."""

    def on_enter_validate_all(
        self, trainer: Trainer, stack: ExitStack, val_dataloaders: list[Any], loop: Any, ckpt_paths: list[Any]
    ) -> None:
        """Before the first of several validations."""

    def run_validation(self, trainer: Trainer, loop_idx: int | None, is_last: bool) -> None:
        """Run the callback's own validation, after the validations of all loaders."""

    def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Add entries to a checkpoint before it is saved."""

    def postprocess_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Change a checkpoint before it is saved, after all callbacks have added to it."""

    def on_after_save_checkpoint(self, trainer: Trainer, ckpt_path: str) -> None:
        """When a checkpoint is complete; the training may have continued meanwhile."""

    def on_save_trainer_state(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Add entries that only a resumed run needs to the checkpoint's ``trainer_state``."""

    def on_after_save_trainer_state(self, trainer: Trainer, trainer_state_file: str) -> None:
        """When the checkpoint with this state is complete."""

    def on_before_load_checkpoint(self, trainer: Trainer, ckpt_path: str | None) -> None:
        """Before a checkpoint is loaded; the path is None if there is none to load."""

    def preprocess_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Change a loaded checkpoint before it is used."""

    def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Restore the entries that ``on_save_checkpoint`` added."""

    def on_load_trainer_state(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Restore the entries that ``on_save_trainer_state`` added, if the checkpoint has any."""


def check_hooks(callbacks: Iterable[Callback]) -> None:
    """Warn once about each method that the trainer never calls, but that has a hook's prefix or is a misspelt hook."""
    known = [name for name in vars(Callback) if not name.startswith("_")]
    for callback in {type(each): each for each in callbacks}.values():
        own = {name for each in type(callback).__mro__ if not each.__module__.startswith(_OWN) for name in vars(each)}
        for name in sorted(own - {*known}):
            near = difflib.get_close_matches(name, known, 1, _ALIKE)
            if name.startswith("_") or not (near or name.startswith(_BEGINNINGS)):
                continue
            remedy = f"Did you mean {near[0]}?" if near else "Rename it if it is not a hook."
            msg = f"The Trainer never calls {type(callback).__name__}.{name}. {remedy}"
            warnings.warn(msg, stacklevel=3)
