"""Callbacks that watch a training: loss, rate, remaining time, norms, and the model's metrics."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Module
from torch.optim import Optimizer

from fsspec_csx.tensors.torch_compat import tree_leaves
from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.loop import TrainingLoop, ValidationLoop
    from fsspec_csx.trainer.trainer import Trainer

_LAYER = re.compile(r"\blayers\.(\d+)\.")
_SMOOTHING = 0.4
"""The weight of the newest measurement in the smoothed rate."""


class CheckLoss(Callback):
    """Ends a training or a validation if the loss is NaN or infinite, before a checkpoint is saved.

    Raises:
        TypeError: from ``fit`` and ``validate``, if the loss is not one number.
        ValueError: from ``fit`` and ``validate``, if the loss is NaN or infinite.
    """

    def on_after_forward(self, trainer: Trainer, model: Module, outputs: dict[str, Any], batch: Any) -> None:
        if (loss := outputs["loss"]).numel() != 1:
            msg = f"The loss has shape {tuple(loss.shape)}. Let the model return one number."
            raise TypeError(msg)

    def on_train_batch_end(
        self, trainer: Trainer, model: Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        value = outputs["loss"].item()
        if value != value or abs(value) == float("inf"):
            msg = f"The loss is {value} at step {trainer.global_step}. Check the learning rate, the data and precision."
            raise ValueError(msg)

    on_validate_batch_end = on_train_batch_end


class RateProfiler(Callback):
    """Logs ``local_samples_per_sec``, ``avg_samples_per_sec`` and ``avg_steps_per_sec`` of this process.

    The clock starts with the first batch of each validation, and of each training between two validations.

    Attributes:
        rate: smoothed samples per second.
        global_rate: samples per second since the clock started.
        elapsed_seconds: seconds since the clock started.
        total_count: samples since the clock started.
    """

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.rate = self.global_rate = self.elapsed_seconds = 0.0
        self.total_count = 0
        self._started = time.monotonic()

    def on_before_forward(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.is_first_iteration:
            self._start()

    def on_train_batch_end(
        self, trainer: Trainer, model: Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        self._count(batch)
        if trainer.stepped and trainer.is_log_step:
            steps_per_sec = (batch_idx + 1) / getattr(trainer.loop, "grad_accum_steps", 1) / self.elapsed_seconds
            trainer.log_metrics(
                local_samples_per_sec=self.rate, avg_samples_per_sec=self.global_rate, avg_steps_per_sec=steps_per_sec
            )

    def on_validate_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
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

    The estimate uses the mean time of a step so far, including validations and checkpoints.
    """

    def on_fit_start(self, trainer: Trainer, train_dataloader: Any, val_dataloader: Any, loop: TrainingLoop) -> None:
        self._first = trainer.global_step
        self._last = loop.last_step(train_dataloader, trainer.global_step)
        self._started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.stepped and trainer.is_log_step:
            a_step = (time.monotonic() - self._started) / (trainer.global_step - self._first)
            seconds = a_step * (self._last - trainer.global_step)
            trainer.log_metrics(time_remaining=seconds)
            trainer.logger.info("Time remaining: %s", timedelta(seconds=round(seconds)))


class ComputeNorm(Callback):
    """Logs the norms of each step that is logged.

    The metrics are ``model_wise_params_norm`` and ``model_wise_grad_norm``, and for parameters with ``layers.0.`` in
    their names ``per_layer_grad_norm/layer_0``, and so on. The gradients are those before clipping.
    """

    def __init__(self) -> None:
        self._norms: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, model: Module, optimizer: Optimizer) -> None:
        if not trainer.logging.is_log_step(trainer, ahead=1):
            self._norms = {}  # those of an earlier step
            return
        parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        gradients = {name: each.grad for name, each in parameters.items() if each.grad is not None}
        layers: dict[str, list[torch.Tensor]] = {}
        for name, gradient in gradients.items():
            if match := _LAYER.search(name):
                layers.setdefault(f"per_layer_grad_norm/layer_{match[1]}", []).append(gradient)
        scaler = getattr(trainer.precision, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()  # the gradients are still scaled
        scaled = {"model_wise_grad_norm": [*gradients.values()], **layers}
        self._norms = {name: _norm(each) / scale for name, each in scaled.items()}
        self._norms["model_wise_params_norm"] = _norm(parameters.values())

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.stepped and trainer.is_log_step:
            trainer.log_metrics(**self._norms)


def _norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the norm of all tensors together; all processes must call it, as it gathers sharded tensors."""
    norms = [torch.linalg.vector_norm(each.detach().float()) for each in tensors]
    whole = [each.full_tensor() if hasattr(each, "full_tensor") else each for each in norms]
    return torch.linalg.vector_norm(torch.stack(whole)) if whole else torch.zeros(())


class ModelEvalMetrics(Callback):
    """Logs the model's metrics after each validation, and adds them to ``loop.metrics``.

    Metrics are submodules with ``reset`` and ``compute``. Each is reset before the validation, and the model updates it
    during the validation. The log uses the metric's ``name``, or else the name of the submodule.
    """

    def on_validate_start(self, trainer: Trainer, model: Module, val_dataloader: Any, loop: ValidationLoop) -> None:
        for metric in _metrics(model).values():
            metric.reset()

    def on_validate_end(self, trainer: Trainer, model: Module, loop: ValidationLoop) -> None:
        found = {}
        for name, metric in _metrics(model).items():
            if getattr(metric, "num_updates", getattr(metric, "update_count", 1)):
                found[name] = float(metric.compute())
            else:
                trainer.logger.warning("The model did not update its metric %s.", name)
        loop.metrics |= found
        if found:
            trainer.log_metrics_dict(found)


def _metrics(model: Module) -> dict[str, Any]:
    return {
        str(getattr(each, "name", name)): each
        for name, each in model.named_modules()
        if callable(getattr(each, "reset", None)) and callable(getattr(each, "compute", None))
    }
