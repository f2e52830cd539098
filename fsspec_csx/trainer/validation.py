"""The validation loop: the model's metrics over a data loader."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.trainer import processes, random_states
from fsspec_csx.trainer.loop import ValidationLoop, length_of
from fsspec_csx.trainer.model_io import as_list, to_device

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer


def run(trainer: Trainer, dataloader: Any, loop: ValidationLoop) -> None:
    """Validate the trainer's model, and store the mean of each metric in ``loop.metrics``.

    Raises a ValueError if the loader has no batches.
    """
    trainer.model.eval()
    trainer.call("on_validate_start", trainer.model, dataloader, loop)
    sums: dict[str, torch.Tensor] = {}
    count = 0
    last = min((each for each in (loop.eval_steps, length_of(dataloader)) if each is not None), default=None)
    with torch.no_grad():
        for batch_idx, loaded in enumerate(dataloader):
            if batch_idx == loop.eval_steps:
                break
            batch = to_device(trainer.device, loaded)
            trainer.is_first_iteration, trainer.is_final_iteration = batch_idx == 0, batch_idx + 1 == last
            trainer.call("on_validate_batch_start", trainer.model, batch, batch_idx)
            trainer.call("on_validate_step_start", trainer.model, batch)
            outputs = trainer.forward(batch)
            trainer.call("on_validate_step_end", trainer.model, outputs, batch)
            for name, value in outputs.items():
                if isinstance(value, torch.Tensor) and value.numel() == 1:
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach().float().mean()
            count += 1
            trainer.call("on_validate_batch_end", trainer.model, outputs, batch, batch_idx)
            if trainer.early_exit.should_exit and not trainer.is_fitting:
                break
    if not count:
        msg = "The data loader for validation has no batches. Check its dataset."
        raise ValueError(msg)
    loop.metrics = {name: processes.mean(value / count) for name, value in sums.items()}
    trainer.log_metrics(**{f"validate/{name}": value for name, value in loop.metrics.items()})
    trainer.call("on_validate_end", trainer.model, loop)
    trainer.model.train()


def run_between(trainer: Trainer, val_dataloader: Any, loop: ValidationLoop, loop_idx: int) -> None:
    """Validate during a training without changing its random states; then save a checkpoint if one is due."""
    with _isolated(trainer):
        for loader in as_list(val_dataloader):
            with contextlib.ExitStack() as stack:
                trainer.call("on_enter_validate", stack, loader, loop)
                stack.enter_context(trainer.reporting("on_validate_exception"))
                run(trainer, loader, loop)
        trainer.call("run_validation", loop_idx, trainer.is_last_step)
    trainer.checkpoint.save_if_due(trainer)


@contextlib.contextmanager
def _isolated(trainer: Trainer) -> Iterator[None]:
    assert trainer.batches is not None
    before, objects = random_states.capture(), trainer.batches.objects.capture()
    try:
        yield
    finally:
        random_states.restore(before)
        trainer.batches.objects.restore(objects)
