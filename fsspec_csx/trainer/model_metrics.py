"""Metrics that are parts of the model, such as those of torchmetrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn import Module

from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.loop import ValidationLoop
    from fsspec_csx.trainer.trainer import Trainer


class ModelEvalMetrics(Callback):
    """Logs the model's metrics after each validation, and adds them to ``loop.metrics``.

    These are its submodules with ``reset`` and ``compute``. Each is reset before the validation, in which the model
    updates it. Its name in the log is its ``name``, or that of the submodule.
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
