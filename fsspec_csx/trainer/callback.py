"""Callback: what can be done at each point of a run."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fsspec_csx.trainer.loop import TrainingLoop, ValidationLoop
    from fsspec_csx.trainer.trainer import Trainer


class Callback:
    """Methods that the trainer calls, all of which do nothing here; a subclass has those that it needs.

    ``outputs`` is what the model returned, as a dict with the key ``loss``; ``batch`` is on the trainer's device;
    ``batch_idx`` counts the batches of this call of ``fit`` or ``validate``, from 0.
    """

    # -- set-up ----------------------------------------------------------------------------------------------------

    def pre_setup(self, trainer: Trainer) -> None:
        """Before anything is set up: no credentials were looked up yet."""

    def setup(self, trainer: Trainer) -> None:
        """Model, optimizer and schedulers are there."""

    def post_setup(self, trainer: Trainer) -> None:
        """All callbacks are set up."""

    # -- fit -------------------------------------------------------------------------------------------------------

    def on_enter_fit(
        self, trainer: Trainer, stack: ExitStack, train_dataloader: Any, val_dataloader: Any, loop: TrainingLoop
    ) -> None:
        """Before the checkpoint is loaded; what is entered on the stack is left at the end of ``fit``."""

    def on_fit_start(self, trainer: Trainer, train_dataloader: Any, val_dataloader: Any, loop: TrainingLoop) -> None:
        """After the checkpoint was loaded."""

    def on_fit_end(self, trainer: Trainer, loop: TrainingLoop) -> None:
        """After the last step and the last validation."""

    def on_fit_exception(self, trainer: Trainer, exception: BaseException) -> None:
        """``fit`` ends with this exception."""

    def on_train_start(
        self, trainer: Trainer, model: torch.nn.Module, train_dataloader: Any, loop: TrainingLoop, loop_idx: int
    ) -> None:
        """Before a stretch of steps between two validations, which are counted by ``loop_idx`` from 0."""

    def on_train_end(self, trainer: Trainer, model: torch.nn.Module, loop: TrainingLoop, loop_idx: int) -> None:
        """After it."""

    def on_train_batch_start(self, trainer: Trainer, model: torch.nn.Module, batch: Any, batch_idx: int) -> None:
        """Before a batch."""

    def on_train_batch_end(
        self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        """After a batch, and the step that it may have completed; ``trainer.stepped`` tells whether it did."""

    def on_before_forward(
        self, trainer: Trainer, model: torch.nn.Module, batch: Any, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        """Before the model is called with these arguments, which may be changed."""

    def on_after_forward(self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any) -> None:
        """After the model was called."""

    def on_before_backward(self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any]) -> None:
        """Before the gradients are computed."""

    def on_after_backward(self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any]) -> None:
        """After that."""

    def on_before_optimizer_step(
        self, trainer: Trainer, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Before the gradients are clipped and applied."""

    def on_after_optimizer_step(
        self, trainer: Trainer, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """After that."""

    def on_before_optimizer_zero_grad(
        self, trainer: Trainer, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Before the gradients are reset."""

    def on_after_optimizer_zero_grad(
        self, trainer: Trainer, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """After that."""

    def on_before_scheduler_step(
        self, trainer: Trainer, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any
    ) -> None:
        """Before a scheduler's step, which follows each step of the optimizer."""

    def on_after_scheduler_step(
        self, trainer: Trainer, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any
    ) -> None:
        """After it."""

    # -- validation ------------------------------------------------------------------------------------------------

    def on_enter_validate(self, trainer: Trainer, stack: ExitStack, val_dataloader: Any, loop: ValidationLoop) -> None:
        """Before the checkpoint is loaded; what is entered on the stack is left at the end of ``validate``."""

    def on_validate_start(
        self, trainer: Trainer, model: torch.nn.Module, val_dataloader: Any, loop: ValidationLoop
    ) -> None:
        """Before the first batch."""

    def on_validate_end(self, trainer: Trainer, model: torch.nn.Module, loop: ValidationLoop) -> None:
        """After the last one; ``loop.metrics`` holds the means of what the model told."""

    def on_validate_exception(self, trainer: Trainer, exception: BaseException) -> None:
        """``validate`` ends with this exception."""

    def on_validate_batch_start(self, trainer: Trainer, model: torch.nn.Module, batch: Any, batch_idx: int) -> None:
        """Before a batch."""

    def on_validate_batch_end(
        self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        """After a batch."""

    def on_enter_validate_all(
        self, trainer: Trainer, stack: ExitStack, val_dataloaders: list[Any], loop: Any, ckpt_paths: list[Any]
    ) -> None:
        """Before the first of several validations."""

    def run_validation(self, trainer: Trainer, loop_idx: int | None, is_last: bool) -> None:
        """A validation of the callback's own, after those of the loaders."""

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Add to what is going to be saved."""

    def postprocess_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Change what is going to be saved, after all have added to it."""

    def on_after_save_checkpoint(self, trainer: Trainer, ckpt_path: str) -> None:
        """A checkpoint is whole; the training may have gone on since the state that it holds."""

    def on_before_load_checkpoint(self, trainer: Trainer, ckpt_path: str | None) -> None:
        """Before a checkpoint is loaded; None if it goes on without one."""

    def preprocess_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Change what was loaded, before any of it is used."""

    def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        """Take from it what ``on_save_checkpoint`` added."""
