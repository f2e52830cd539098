"""The training loop, which alternates between training steps and validations; the validation loop."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from fsspec_csx.tensors.torch_compat import tree_map
from fsspec_csx.trainer import processes, random_states
from fsspec_csx.trainer.loop import TrainingLoop, ValidationLoop, as_list, length_of

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

logger = logging.getLogger("fsspec_csx")

_TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def deferred_sigterm() -> Iterator[list[int]]:
    """Within the block, only add SIGTERM to the list that this yields; at its end all processes exit together.

    If an error ends the block, this process exits alone, as the others may not come so far.

    Spot machines and job schedulers send SIGTERM. Only the main thread can handle signals.
    """
    terminated: list[int] = []
    handles = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda number, frame: terminated.append(number)) if handles else None
    try:
        try:
            yield terminated
        finally:
            if handles:
                signal.signal(signal.SIGTERM, before)
    except (Exception, KeyboardInterrupt) as error:
        if not terminated:
            raise
        logger.error("SIGTERM: the process exits after an error of the training.", exc_info=error)
        raise SystemExit(_TERMINATED) from error  # which a program that continues after errors does not catch
    (ended,) = processes.any_process(bool(terminated))
    if ended:  # after the last step
        sys.exit(_TERMINATED)


def run(
    trainer: Trainer,
    train_dataloader: Any,
    val_dataloader: Any,
    loop: TrainingLoop,
    steps: range,
    terminated: list[int],
) -> None:
    """Train from the trainer's current step to the end of ``steps``, with the validations of the loop."""
    sync = processes.PeriodicSync()
    loop_idx = 0
    (exits,) = processes.any_process(trainer.early_exit.should_exit)
    while trainer.global_step < steps.stop and not exits:
        with contextlib.ExitStack() as stack:
            trainer.call("on_enter_train", stack, train_dataloader, loop, loop_idx)
            stack.enter_context(trainer.reporting("on_train_exception"))
            trainer.model.train()
            trainer.call("on_train_start", trainer.model, train_dataloader, loop, loop_idx)
            exits = _train_until_validation(trainer, loop, steps, terminated, sync)
            trainer.call("on_train_end", trainer.model, loop, loop_idx)
        if loop.eval_frequency:
            _validate_between(trainer, val_dataloader, loop.val_loop, loop_idx)
        loop_idx += 1
    if exits and trainer.checkpoint.steps:
        trainer.checkpoint.save_last(trainer)


def _train_until_validation(
    trainer: Trainer, loop: TrainingLoop, steps: range, terminated: list[int], sync: processes.PeriodicSync
) -> bool:
    """Train up to the next validation or the end of ``steps``; return whether an early exit ends the training."""
    assert trainer.batches is not None
    batch_idx = 0
    losses: list[torch.Tensor] = []
    trainer.validates_next = False
    while trainer.global_step < steps.stop and not trainer.validates_next:
        batch = _to_device(trainer.device, trainer.batches.next())
        trainer.stepped = (batch_idx + 1) % loop.grad_accum_steps == 0
        trainer.is_last_step = trainer.stepped and trainer.global_step + 1 == steps.stop
        validates = trainer.stepped and loop.validates_after(trainer.global_step + 1, steps)
        trainer.is_first_iteration = batch_idx == 0
        trainer.is_final_iteration = trainer.is_last_step or validates
        trainer.call("on_train_batch_start", trainer.model, batch, batch_idx)
        trainer.call("on_train_step_start", trainer.model, batch)
        outputs = _training_step(trainer, batch, loop.grad_accum_steps)
        trainer.call("on_train_step_end", trainer.model, outputs, batch)
        losses.append(outputs["loss"].detach())
        if trainer.stepped:
            trainer.global_step += 1
            if trainer.is_log_step:
                trainer.log_metrics(loss=torch.stack(losses).mean())
            losses.clear()
        trainer.validates_next = validates
        trainer.call("on_train_batch_end", trainer.model, outputs, batch, batch_idx)
        batch_idx += 1
        if trainer.stepped:
            trainer.is_last_step |= _ends(trainer, terminated, sync)
            if trainer.is_last_step:
                return trainer.global_step < steps.stop
    return False


def _ends(trainer: Trainer, terminated: list[int], sync: processes.PeriodicSync) -> bool:
    """Return whether an early exit ends the training; SIGTERM and a failed save raise. All processes agree."""
    exits = trainer.early_exit.should_exit
    ended, failed, exits = sync.any_process(bool(terminated), trainer.checkpoint.saves.failed, exits)
    if failed:
        trainer.checkpoint.saves.wait(trainer)  # raises the error of the save
    if ended:
        trainer.logger.warning("SIGTERM: the training ends after step %d.", trainer.global_step)
        if trainer.checkpoint.steps:
            trainer.checkpoint.save_last(trainer)
        sys.exit(_TERMINATED)
    return exits


def _training_step(trainer: Trainer, batch: Any, accumulated: int) -> dict[str, Any]:
    """Compute the gradients of a batch, one of ``accumulated``, and apply them if the batch completes a step.

    Returns the model's output as a dict with the key ``loss``.
    """
    assert trainer.optimizer is not None
    with contextlib.nullcontext() if trainer.stepped else processes.no_sync(trainer.model):
        outputs = trainer.forward(batch)
        trainer.call("on_before_backward", trainer.model, outputs)
        trainer.precision.backward(outputs["loss"] / accumulated)
        trainer.call("on_after_backward", trainer.model, outputs)
    if trainer.stepped:
        _optimizer_step(trainer, trainer.optimizer)
    return outputs


def _optimizer_step(trainer: Trainer, optimizer: torch.optim.Optimizer) -> None:
    model = trainer.model
    trainer.call("on_before_optimizer_step", model, optimizer)
    trainer.precision.clip_gradients(optimizer)
    trainer.precision.optimizer_step(optimizer)
    trainer.call("on_after_optimizer_step", model, optimizer)
    trainer.call("on_before_optimizer_zero_grad", model, optimizer)
    optimizer.zero_grad()
    trainer.call("on_after_optimizer_zero_grad", model, optimizer)
    for scheduler in trainer.schedulers:
        trainer.call("on_before_scheduler_step", model, optimizer, scheduler)
        scheduler.step()
        trainer.call("on_after_scheduler_step", model, optimizer, scheduler)


def validate(trainer: Trainer, dataloader: Any, loop: ValidationLoop) -> None:
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
            batch = _to_device(trainer.device, loaded)
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
    (empty,) = processes.any_process(not count)
    if empty:
        where = " in another process" if count else ""
        msg = f"The data loader for validation has no batches{where}. Check its dataset."
        raise ValueError(msg)
    loop.metrics = {name: processes.mean(value / count) for name, value in sums.items()}
    trainer.log_metrics(**{f"validate/{name}": value for name, value in loop.metrics.items()})
    trainer.call("on_validate_end", trainer.model, loop)
    trainer.model.train()


def _validate_between(trainer: Trainer, val_dataloader: Any, loop: ValidationLoop, loop_idx: int) -> None:
    """Validate during a training without changing its random states; then save a checkpoint if one is due."""
    with _isolated(trainer):
        for loader in as_list(val_dataloader):
            with contextlib.ExitStack() as stack:
                trainer.call("on_enter_validate", stack, loader, loop)
                stack.enter_context(trainer.reporting("on_validate_exception"))
                validate(trainer, loader, loop)
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


def _to_device(device: torch.device, batch: Any) -> Any:
    return tree_map(
        lambda value: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value, batch
    )


def as_outputs(outputs: Any) -> dict[str, Any]:
    """Return a model's output as a dict with the key ``loss``; raise a TypeError if it has no loss."""
    if isinstance(outputs, torch.Tensor):
        return {"loss": outputs}
    if isinstance(outputs, Mapping):
        found = dict(outputs)
    elif isinstance(outputs, (tuple, list)) and outputs:
        found = {"loss": outputs[0], **{f"output_{number}": each for number, each in enumerate(outputs[1:], 1)}}
    else:
        found = {}
    if not isinstance(found.get("loss"), torch.Tensor):
        msg = f"The model returned {type(outputs).__name__} without a loss. Let it return the loss, or a dict with it."
        raise TypeError(msg)
    return found
