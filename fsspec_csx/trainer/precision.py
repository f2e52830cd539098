"""Mixed precision and gradient clipping."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

# cbfloat16 is a format of the Cerebras hardware; the range of bfloat16 suffices for it.
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "cbfloat16": torch.bfloat16}


class Precision(Callback):
    """Computes and applies gradients in full precision, and clips them.

    Args:
        max_gradient_norm: scale gradients down so that the norm of all together does not exceed it.
        max_gradient_value: clamp the absolute values of elements to it.

    Raises:
        ValueError: if both are given, or one is not above 0.
    """

    def __init__(self, max_gradient_norm: float | None = None, max_gradient_value: float | None = None) -> None:
        for name, value in (("max_gradient_norm", max_gradient_norm), ("max_gradient_value", max_gradient_value)):
            if value is not None and not value > 0:
                msg = f"{name} must be above 0, not {value}. Remove it for no clipping."
                raise ValueError(msg)
        if max_gradient_norm is not None and max_gradient_value is not None:
            msg = "Gradients are clipped by their norm or by value, not both. Remove one of them."
            raise ValueError(msg)
        self.max_gradient_norm = max_gradient_norm
        self.max_gradient_value = max_gradient_value

    def autocast_context_manager(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context for the forward pass."""
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients of the optimizer's parameters."""
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        if self.max_gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_gradient_norm)
        elif self.max_gradient_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, self.max_gradient_value)

    def optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the gradients."""
        optimizer.step()


class MixedPrecision(Precision):
    """Runs the forward pass in 16 bits with torch.autocast, and scales the loss for float16.

    Args:
        enabled: if False, gradients are only clipped.
        fp16_type: ``float16``, or ``bfloat16``, which needs no scaling and is used for ``cbfloat16`` and on CPUs.
        loss_scaling_factor: a constant (1 as in the ModelZoo), or ``dynamic``, which preserves small float16 gradients.
        initial_loss_scale: the first dynamic scale; 65536 if None.
        steps_per_increase: the number of steps without overflow after which a dynamic scale is doubled.
        max_gradient_norm: see ``Precision``.
        max_gradient_value: see ``Precision``.
        min_loss_scale: the smallest dynamic scale.
        max_loss_scale: the largest dynamic scale.
        log_loss_scale: whether to log ``loss_scale``; if None, only a dynamic scale is logged.
        precision_opt_level: an option of the Cerebras compiler, which has no effect.
    """

    def __init__(
        self,
        enabled: bool = True,
        fp16_type: str = "bfloat16",
        loss_scaling_factor: float | str = 1.0,
        initial_loss_scale: float | None = None,
        steps_per_increase: int = 2000,
        max_gradient_norm: float | None = None,
        max_gradient_value: float | None = None,
        min_loss_scale: float | None = None,
        max_loss_scale: float | None = None,
        log_loss_scale: bool | None = None,
        precision_opt_level: int | None = None,
    ) -> None:
        super().__init__(max_gradient_norm, max_gradient_value)
        if fp16_type not in _DTYPES:
            msg = f"fp16_type is one of {', '.join(_DTYPES)}, not {fp16_type!r}. Give one of these."
            raise ValueError(msg)
        if loss_scaling_factor != "dynamic" and not isinstance(loss_scaling_factor, (int, float)):
            msg = f"loss_scaling_factor is a number or 'dynamic', not {loss_scaling_factor!r}. Give one of these."
            raise ValueError(msg)
        if min_loss_scale is not None and max_loss_scale is not None and min_loss_scale > max_loss_scale:
            msg = f"min_loss_scale is {min_loss_scale}, above max_loss_scale, {max_loss_scale}. Swap them."
            raise ValueError(msg)
        self.enabled = enabled
        self.fp16_type = fp16_type
        self.scaler: torch.amp.GradScaler | None = None
        dynamic = loss_scaling_factor == "dynamic"
        self.log_loss_scale = dynamic if log_loss_scale is None else log_loss_scale
        limited = dynamic and (min_loss_scale is not None or max_loss_scale is not None)
        self._limits = (min_loss_scale or 0.0, max_loss_scale or math.inf) if limited else None
        first = 2.0**16 if initial_loss_scale is None else initial_loss_scale
        self._scaling = {
            "init_scale": self._limited(first) if dynamic else float(loss_scaling_factor),
            "growth_interval": steps_per_increase if dynamic else 2**31 - 1,
            "growth_factor": 2.0 if dynamic else 1.0 + 1e-9,
            "backoff_factor": 0.5 if dynamic else 1.0 - 1e-9,
        }

    def setup(self, trainer: Trainer) -> None:
        self._device = trainer.device.type
        self._dtype = torch.bfloat16 if self._device == "cpu" else _DTYPES[self.fp16_type]
        if self.enabled and self._dtype is torch.float16:
            self.scaler = torch.amp.GradScaler(self._device, **self._scaling)  # type: ignore[arg-type]

    def autocast_context_manager(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self._device, dtype=self._dtype, enabled=self.enabled)

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss if self.scaler is None else self.scaler.scale(loss))

    def clip_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        super().clip_gradients(optimizer)

    def optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler is None:
            super().optimizer_step(optimizer)
            return
        self.scaler.step(optimizer)
        self.scaler.update()
        if self._limits is not None:
            scale = self.scaler.get_scale()
            if scale != self._limited(scale):
                self.scaler.update(self._limited(scale))

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self.log_loss_scale and self.scaler is not None and trainer.stepped and trainer.is_log_step:
            trainer.log_metrics(loss_scale=self.scaler.get_scale())

    def _limited(self, scale: float) -> float:
        if self._limits is None:
            return scale
        lowest, highest = self._limits
        return min(max(scale, lowest), highest)

    def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        if self.scaler is not None:
            state_dict["grad_scaler"] = self.scaler.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        if self.scaler is not None and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])
