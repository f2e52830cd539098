"""One validation: the model's metrics over a data loader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.trainer import processes
from fsspec_csx.trainer.loop import ValidationLoop
from fsspec_csx.trainer.model_io import to_device

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer


def run(trainer: Trainer, dataloader: Any, loop: ValidationLoop) -> None:
    """Validate the model of a trainer, and leave the means of what it told in ``loop.metrics``.

    Raises:
        ValueError: if the loader has no batches.
    """
    trainer.model.eval()
    trainer.call("on_validate_start", trainer.model, dataloader, loop)
    sums: dict[str, torch.Tensor] = {}
    count = 0
    with torch.no_grad():
        for batch_idx, unmoved in enumerate(dataloader):
            if batch_idx == loop.eval_steps:
                break
            batch = to_device(trainer.device, unmoved)
            trainer.call("on_validate_batch_start", trainer.model, batch, batch_idx)
            outputs = trainer.forward(batch)
            for name, value in outputs.items():
                if isinstance(value, torch.Tensor) and value.numel() == 1:
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach().float().mean()
            count += 1
            trainer.call("on_validate_batch_end", trainer.model, outputs, batch, batch_idx)
    if not count:
        msg = "The data loader for validation has no batches. Check its dataset."
        raise ValueError(msg)
    loop.metrics = {name: processes.mean(value / count) for name, value in sums.items()}
    trainer.log_metrics(**{f"validate/{name}": value for name, value in loop.metrics.items()})
    trainer.call("on_validate_end", trainer.model, loop)
    trainer.model.train()
