"""ComputeNorm: the norms of parameters and gradients, as metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_LAYER = re.compile(r"\blayers\.(\d+)\.")


class ComputeNorm(Callback):
    """Logs the norms of each step that is logged.

    The metrics are ``model_wise_params_norm``, ``model_wise_grad_norm``, and ``per_layer_grad_norm/layer_0`` and so on
    for parameters with ``layers.0.`` in their names. Gradients are those before clipping.
    """

    def __init__(self) -> None:
        self._norms: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(
        self, trainer: Trainer, model: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
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

    def on_train_batch_end(
        self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        if trainer.stepped and trainer.is_log_step:
            trainer.log_metrics(**self._norms)


def _norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """The norm of all tensors together; sharded ones are gathered, so that all processes must call it."""
    norms = [torch.linalg.vector_norm(each.detach().float()) for each in tensors]
    whole = [each.full_tensor() if hasattr(each, "full_tensor") else each for each in norms]
    return torch.linalg.vector_norm(torch.stack(whole)) if whole else torch.zeros(())
