"""Mixed precision, and the clipping of gradients."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Precision(Callback):
    """How gradients are computed and applied: as they are, but for clipping.

    Args:
        max_gradient_norm: the norm of all gradients together is scaled down to this.
        max_gradient_value: each element of a gradient is cut off at this.

    Raises:
        ValueError: if both are given, or one is not above 0.
    """

    def __init__(self, max_gradient_norm: float | None = None, max_gradient_value: float | None = None) -> None:
        for name, value in (("max_gradient_norm", max_gradient_norm), ("max_gradient_value", max_gradient_value)):
            if value is not None and not value > 0:
                msg = f"{name} must be above 0, not {value}. Leave it away for no clipping."
                raise ValueError(msg)
        if max_gradient_norm is not None and max_gradient_value is not None:
            msg = "Gradients are clipped by their norm or by value, not both. Leave one of them away."
            raise ValueError(msg)
        self.max_gradient_norm = max_gradient_norm
        self.max_gradient_value = max_gradient_value

    def autocast_context_manager(self) -> contextlib.AbstractContextManager[Any]:
        """Entered around the forward pass."""
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
    """The forward pass in 16 bits where torch.amp has it so, with scaled gradients for float16.

    Args:
        enabled: if False, it only clips.
        fp16_type: ``float16``, or ``bfloat16``, which needs no scaling. The CPU computes in the latter in any case.
        loss_scaling_factor: ``dynamic``, or a number that stays.
        initial_loss_scale: the first factor, where it is dynamic.
        steps_per_increase: steps without an overflow after which it is doubled.
        max_gradient_norm: as of ``Precision``.
        max_gradient_value: as of ``Precision``.
    """

    def __init__(
        self,
        enabled: bool = True,
        fp16_type: str = "bfloat16",
        loss_scaling_factor: float | str = "dynamic",
        initial_loss_scale: float = 2.0**16,
        steps_per_increase: int = 2000,
        max_gradient_norm: float | None = None,
        max_gradient_value: float | None = None,
    ) -> None:
        super().__init__(max_gradient_norm, max_gradient_value)
        if fp16_type not in _DTYPES:
            msg = f"fp16_type is one of {', '.join(_DTYPES)}, not {fp16_type!r}. Give one of these."
            raise ValueError(msg)
        if loss_scaling_factor != "dynamic" and not isinstance(loss_scaling_factor, (int, float)):
            msg = f"loss_scaling_factor is a number or 'dynamic', not {loss_scaling_factor!r}. Give one of these."
            raise ValueError(msg)
        self.enabled = enabled
        self.fp16_type = fp16_type
        self.scaler: torch.amp.GradScaler | None = None
        dynamic = loss_scaling_factor == "dynamic"
        self._scaling = {
            "init_scale": initial_loss_scale if dynamic else float(loss_scaling_factor),
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

    def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        if self.scaler is not None:
            state_dict["grad_scaler"] = self.scaler.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        if self.scaler is not None and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])
