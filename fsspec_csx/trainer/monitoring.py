"""Callbacks that watch a training: its loss, its rate, and the time it still takes."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.tensors.torch_compat import tree_leaves
from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.loop import TrainingLoop
    from fsspec_csx.trainer.trainer import Trainer

_SMOOTHING = 0.4
"""The weight of the newest measurement in the smoothed rate."""


class CheckLoss(Callback):
    """Ends a training or a validation whose loss is NaN or infinite, before a checkpoint of it is saved.

    Raises:
        TypeError: from ``fit`` and ``validate``, if the loss is not one number.
        ValueError: from ``fit`` and ``validate``, if it is NaN or infinite.
    """

    def on_after_forward(self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any) -> None:
        if (loss := outputs["loss"]).numel() != 1:
            msg = f"The loss has shape {tuple(loss.shape)}. Let the model return one number."
            raise TypeError(msg)

    def on_train_batch_end(
        self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        value = outputs["loss"].item()
        if value != value or abs(value) == float("inf"):
            msg = f"The loss is {value} at step {trainer.global_step}. Check the learning rate, the data and precision."
            raise ValueError(msg)

    on_validate_batch_end = on_train_batch_end


class RateProfiler(Callback):
    """Logs ``local_samples_per_sec``, ``avg_samples_per_sec`` and ``avg_steps_per_sec`` of this process.

    The clock starts with the first batch of each stretch of training and of each validation.

    Attributes:
        rate: smoothed samples per second.
        global_rate: samples per second since the clock started.
        elapsed_seconds: seconds since then.
        total_count: samples since then.
    """

    def __init__(self) -> None:
        self.rate = self.global_rate = self.elapsed_seconds = 0.0
        self.total_count = 0
        self._started = time.monotonic()

    def on_before_forward(
        self, trainer: Trainer, model: torch.nn.Module, batch: Any, args: list[Any], kwargs: dict[str, Any]
    ) -> None:
        if trainer.is_first_iteration:
            self.rate = self.global_rate = self.elapsed_seconds = 0.0
            self.total_count = 0
            self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        self._count(batch)
        if trainer.stepped and trainer.is_log_step:
            steps_per_sec = (batch_idx + 1) / getattr(trainer.loop, "grad_accum_steps", 1) / self.elapsed_seconds
            trainer.log_metrics(
                local_samples_per_sec=self.rate, avg_samples_per_sec=self.global_rate, avg_steps_per_sec=steps_per_sec
            )

    def on_validate_batch_end(
        self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        self._count(batch)

    def _count(self, batch: Any) -> None:
        samples = next((len(each) for each in tree_leaves(batch) if isinstance(each, torch.Tensor) and each.ndim), 1)
        before, self.elapsed_seconds = self.elapsed_seconds, max(time.monotonic() - self._started, 1e-9)
        newest = samples / max(self.elapsed_seconds - before, 1e-9)
        self.rate = newest if not self.total_count else _SMOOTHING * newest + (1 - _SMOOTHING) * self.rate
        self.total_count += samples
        self.global_rate = self.total_count / self.elapsed_seconds


class TimeRemaining(Callback):
    """Logs ``time_remaining``, the estimated seconds to the end of ``fit``, and a message with it.

    The estimate is the mean time of a step so far, validations and checkpoints included.
    """

    def on_fit_start(self, trainer: Trainer, train_dataloader: Any, val_dataloader: Any, loop: TrainingLoop) -> None:
        self._first = trainer.global_step
        self._last = loop.last_step(train_dataloader, trainer.global_step)
        self._started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        if trainer.stepped and trainer.is_log_step:
            a_step = (time.monotonic() - self._started) / (trainer.global_step - self._first)
            seconds = a_step * (self._last - trainer.global_step)
            trainer.log_metrics(time_remaining=seconds)
            trainer.logger.info("Time remaining: %s", timedelta(seconds=round(seconds)))
