"""Trainer: trains and validates a model, and keeps its checkpoints where the next run finds them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from logging import Logger as PythonLogger
from typing import Any

import torch

from fsspec_csx.trainer import processes, random_states, training_state, validation
from fsspec_csx.trainer.batches import Batches
from fsspec_csx.trainer.callback import Callback
from fsspec_csx.trainer.checkpointing import Checkpoint
from fsspec_csx.trainer.loggers import Logger, Logging, ProgressLogger
from fsspec_csx.trainer.loop import TrainingLoop, ValidationLoop
from fsspec_csx.trainer.model_io import as_list, as_outputs, to_device
from fsspec_csx.trainer.precision import Precision
from fsspec_csx.trainer.termination import Termination

_UNSET: Any = ...


class Trainer:
    """Trains and validates a model.

    Under ``torchrun`` all processes train together: by DistributedDataParallel, unless ``model`` is already wrapped or
    sharded (by ``fully_shard``). Of a sharded one each saves and loads its own parts; of others the first process saves
    all. Another number of processes can go on with either. The data loader has to give each process samples of its own,
    as by a ``DistributedSampler``.

    Args:
        device: ``"CPU"``, ``"GPU"`` or any device of torch; a GPU if there is one, by default.
        model_dir: a local folder for what is no checkpoint, and for these where no ``checkpoint_root`` is given.
        model: a module, or a function that makes it. Called with a batch, it returns the loss, or a mapping or a
            sequence that holds it as ``loss`` or at first.
        optimizer: an optimizer, or a function that makes it of the model; None if there is only validation.
        schedulers: of the learning rate or the like, a step for each of the optimizer's; or functions that make them of
            the optimizer.
        precision: mixed precision and clipping.
        loop: how long to train and how often to validate; one epoch by default.
        checkpoint: when to save, and where; by default never, but the newest one is loaded.
        logging: how often to log.
        callbacks: called in this order at each point of the run.
        loggers: where metrics go; the console by default.
        seed: of all random generators.

    Attributes:
        global_step: steps that were trained, those before a resume included.
        stepped: whether the last batch completed a step.
        is_last_step: whether the training ends with this step.
        validates_next: whether a validation follows the last batch.
        is_fitting: whether ``fit`` is under way.
        batches: the training data; None outside ``fit``.

    Raises:
        TypeError: if an argument is not what it must be.
        PermissionError: if checkpoints are to be saved where that is not allowed.
        OSError: what else the filesystem raised when that was tried.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        model_dir: str | os.PathLike[str] = "./model_dir",
        model: torch.nn.Module | Callable[[], torch.nn.Module] | None = None,
        optimizer: torch.optim.Optimizer | Callable[[torch.nn.Module], torch.optim.Optimizer] | None = None,
        schedulers: Any = None,
        precision: Precision | None = None,
        loop: TrainingLoop | ValidationLoop | None = None,
        checkpoint: Checkpoint | None = None,
        logging: Logging | None = None,
        callbacks: Iterable[Callback] | None = None,
        loggers: Iterable[Logger] | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module) and not callable(model):
            msg = f"model is a module or a function that makes one, not {type(model).__name__}. Give one of these."
            raise TypeError(msg)
        self.model_dir = os.fspath(model_dir)
        self.precision = precision or Precision()
        self.loop = loop or TrainingLoop()
        self.checkpoint = checkpoint or Checkpoint()
        self.logging = logging or Logging()
        self.loggers = [ProgressLogger()] if loggers is None else [*loggers]
        self.callbacks: list[Callback] = [self.precision, self.loop, self.logging, *(callbacks or ()), *self.loggers]
        self.callbacks.append(self.checkpoint)  # the last, so that it saves what the others have done
        for each in self.callbacks:
            if not isinstance(each, Callback):
                msg = f"{each!r} is no Callback. Derive its class from fsspec_csx.trainer.Callback."
                raise TypeError(msg)
        self.global_step = 0
        self.stepped = self.is_last_step = self.validates_next = self.is_fitting = False
        self.batches: Batches | None = None
        self._termination = Termination()
        self.call("pre_setup")
        self.device = processes.select_device(device)
        processes.join(self.device)
        if seed is not None:
            random_states.seed(seed)
        self._set_up(model, optimizer, schedulers)
        self.call("setup")
        self.call("post_setup")

    def _set_up(self, model: Any, optimizer: Any, schedulers: Any) -> None:
        made = model if isinstance(model, torch.nn.Module) else model()
        self.model = processes.distribute(made.to(self.device), self.device)
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            optimizer = optimizer(processes.unwrap(self.model))
        self.optimizer: torch.optim.Optimizer | None = optimizer
        if schedulers is None:
            schedulers = []
        elif callable(schedulers) or hasattr(schedulers, "step"):
            schedulers = [schedulers]
        if schedulers and optimizer is None:
            msg = "There are schedulers, and no optimizer. Give an optimizer, too."
            raise TypeError(msg)
        self.schedulers: list[Any] = [each if hasattr(each, "step") else each(optimizer) for each in schedulers]

    @property
    def logger(self) -> PythonLogger:
        """Where to say what happens."""
        return self.logging.logger

    def call(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Call a method of all callbacks, in their order, with the trainer as its first argument."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *args, **kwargs)

    def log_metrics(self, **metrics: Any) -> None:
        """Give metrics of this step to all loggers."""
        if processes.is_first():
            numbers = {name: float(value) for name, value in metrics.items()}
            for logger in self.loggers:
                logger.log_metrics(numbers, self.global_step)

    # -- training --------------------------------------------------------------------------------------------------

    def fit(self, train_dataloader: Any, val_dataloader: Any = None, ckpt_path: Any = _UNSET) -> None:
        """Train, and validate now and then.

        On SIGTERM the step under way is completed and saved (if checkpoints are), and the process exits with status
        143; many processes do so together, and agree on it about once a second. What is drawn from random generators by
        validation does not change the training.

        Args:
            train_dataloader: batches to train with.
            val_dataloader: batches to validate with, or several such loaders.
            ckpt_path: the checkpoint to go on from; None for none. If it is left away, the newest whole one of the
                checkpoint root, if ``autoload_last_checkpoint``.

        Raises:
            TypeError: without an optimizer, or with a loop that only validates.
            CheckpointError: a ValueError, if the checkpoint is damaged, or does not fit the model.
            OSError: what the filesystem raised, also when a checkpoint was saved.
        """
        loop = self.loop
        if not isinstance(loop, TrainingLoop) or self.optimizer is None:
            msg = "Training takes an optimizer and a TrainingLoop. Give them to the Trainer."
            raise TypeError(msg)
        with contextlib.ExitStack() as stack:
            self.call("on_enter_fit", stack, train_dataloader, val_dataloader, loop)
            stack.callback(setattr, self, "batches", None)
            stack.callback(setattr, self, "is_fitting", False)
            stack.enter_context(self._on_exception("on_fit_exception"))
            stack.enter_context(self._termination.deferred())
            limit = loop.steps_per_epoch and loop.steps_per_epoch * loop.grad_accum_steps
            self.batches = Batches(train_dataloader, limit, processes.count())
            loaded = self._load(ckpt_path)
            first = self.global_step
            last = loop.last_step(train_dataloader, self.global_step)
            self.call("on_fit_start", train_dataloader, val_dataloader, loop)
            if loaded is not None:
                training_state.restore_position(self, loaded, self.checkpoint.resumed_from or "")
                del loaded
            self._sync = processes.PeriodicSync()
            self.is_fitting = True
            loop_idx = 0
            while self.global_step < last:
                self._train(train_dataloader, loop, loop_idx, range(first, last))
                if loop.eval_frequency:
                    self._validate_between(val_dataloader, loop_idx)
                loop_idx += 1
            self.call("on_fit_end", loop)

    def _train(self, dataloader: Any, loop: TrainingLoop, loop_idx: int, steps: range) -> None:
        """Train up to the next validation, or the end of these steps, of which some may have been made."""
        assert self.batches is not None
        self.model.train()
        self.call("on_train_start", self.model, dataloader, loop, loop_idx)
        batch_idx = 0
        losses: list[torch.Tensor] = []
        while True:
            batch = to_device(self.device, self.batches.next())
            self.call("on_train_batch_start", self.model, batch, batch_idx)
            self.stepped = (batch_idx + 1) % loop.grad_accum_steps == 0
            self.is_last_step = self.stepped and self.global_step + 1 == steps.stop
            outputs = self.training_step(batch, loop.grad_accum_steps)
            losses.append(outputs["loss"].detach())
            if self.stepped:
                self.global_step += 1
                if self.logging.is_log_step(self):
                    self.log_metrics(loss=torch.stack(losses).mean())
                losses.clear()
            self.validates_next = self.stepped and loop.validates_after(self.global_step, steps)
            self.call("on_train_batch_end", self.model, outputs, batch, batch_idx)
            batch_idx += 1
            if not self.stepped:
                continue
            terminated, failed = self._sync.any_process(self._termination.requested, self.checkpoint.failed)
            if failed:  # all end at the same step, with the same error
                self.checkpoint.wait(self)
            if terminated:
                self._leave()
            if self.global_step >= steps.stop or self.validates_next:
                break
        self.call("on_train_end", self.model, loop, loop_idx)

    def training_step(self, batch: Any, accumulated: int = 1) -> dict[str, Any]:
        """Compute the gradients of a batch, and apply them if that completes a step.

        Args:
            batch: on the trainer's device.
            accumulated: batches whose gradients make one step.

        Returns:
            What the model returned, as a dict with the key ``loss``.
        """
        assert self.optimizer is not None
        with contextlib.nullcontext() if self.stepped else processes.no_sync(self.model):
            outputs = self.forward(batch)
            self.call("on_before_backward", self.model, outputs)
            self.precision.backward(outputs["loss"] / accumulated)
            self.call("on_after_backward", self.model, outputs)
        if self.stepped:
            self._step(self.optimizer)
        return outputs

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        self.call("on_before_optimizer_step", self.model, optimizer)
        self.precision.clip_gradients(optimizer)
        self.precision.optimizer_step(optimizer)
        self.call("on_after_optimizer_step", self.model, optimizer)
        self.call("on_before_optimizer_zero_grad", self.model, optimizer)
        optimizer.zero_grad()
        self.call("on_after_optimizer_zero_grad", self.model, optimizer)
        for scheduler in self.schedulers:
            self.call("on_before_scheduler_step", self.model, optimizer, scheduler)
            scheduler.step()
            self.call("on_after_scheduler_step", self.model, optimizer, scheduler)

    def forward(self, batch: Any) -> dict[str, Any]:
        """Call the model with a batch.

        Returns:
            What it returned, as a dict with the key ``loss``.

        Raises:
            TypeError: if there is no loss in it.
        """
        args, kwargs = [batch], dict[str, Any]()
        self.call("on_before_forward", self.model, batch, args, kwargs)
        with self.precision.autocast_context_manager():
            outputs = as_outputs(self.model(*args, **kwargs))
        self.call("on_after_forward", self.model, outputs, batch)
        return outputs

    # -- validation ------------------------------------------------------------------------------------------------

    def validate(
        self, val_dataloader: Any = None, ckpt_path: Any = _UNSET, loop: ValidationLoop | None = None
    ) -> dict[str, float]:
        """Validate the model.

        Args:
            val_dataloader: batches to validate with.
            ckpt_path: the checkpoint to validate, as of ``fit``.
            loop: how long; the one of the trainer's loop by default.

        Returns:
            The means over the batches of ``loss``, and of what else the model told in numbers.

        Raises:
            CheckpointError: a ValueError, if the checkpoint is damaged, or does not fit the model.
            OSError: what the filesystem raised.
        """
        own = self.loop.val_loop if isinstance(self.loop, TrainingLoop) else self.loop
        loop = loop or own
        with contextlib.ExitStack() as stack:
            self.call("on_enter_validate", stack, val_dataloader, loop)
            stack.enter_context(self._on_exception("on_validate_exception"))
            self._load(ckpt_path)
            validation.run(self, val_dataloader, loop)
        return loop.metrics

    def validate_all(self, val_dataloaders: Any = None, ckpt_paths: Any = _UNSET, loop: Any = None) -> None:
        """Validate one checkpoint after the other with each of several loaders, and as callbacks have it.

        Args:
            val_dataloaders: a loader, or several.
            ckpt_paths: a path, or several; otherwise as ``ckpt_path`` of ``fit``.
            loop: as of ``validate``.
        """
        loaders = as_list(val_dataloaders)
        paths = [ckpt_paths] if ckpt_paths is None or ckpt_paths is _UNSET else as_list(ckpt_paths)
        with contextlib.ExitStack() as stack:
            self.call("on_enter_validate_all", stack, loaders, loop, paths)
            for path in paths:
                self._load(path)
                for loader in loaders:
                    self.validate(loader, ckpt_path=None, loop=loop)
                self.call("run_validation", None, True)

    def _validate_between(self, val_dataloader: Any, loop_idx: int) -> None:
        assert isinstance(self.loop, TrainingLoop)
        with self._undisturbed():
            for loader in as_list(val_dataloader):
                with contextlib.ExitStack() as stack:
                    self.call("on_enter_validate", stack, loader, self.loop.val_loop)
                    stack.enter_context(self._on_exception("on_validate_exception"))
                    validation.run(self, loader, self.loop.val_loop)
            self.call("run_validation", loop_idx, self.is_last_step)
        self.checkpoint.save_if_due(self)

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """What is drawn within the block does not change what the training draws."""
        assert self.batches is not None
        before, objects = random_states.capture(), self.batches.objects.capture()
        try:
            yield
        finally:
            random_states.restore(before)
            self.batches.objects.restore(objects)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> str:
        """Save the training as it is now; in the background, if the checkpoint callback does so.

        Returns:
            The path, at which the checkpoint will be once it is whole; empty on processes that have no part in it.
        """
        return self.checkpoint.save(self)

    def load_checkpoint(self, ckpt_path: Any = None) -> None:
        """Load a checkpoint, as ``fit`` does, all but the position in the data.

        Args:
            ckpt_path: as of ``fit``.
        """
        self._load(ckpt_path)

    def _load(self, path: Any) -> dict[str, Any] | None:
        if path is _UNSET and self.checkpoint.autoload_last_checkpoint:
            return self.checkpoint.load_latest(self)
        path = None if path is _UNSET else path
        return self.checkpoint.load(self, None if path is None else os.fspath(path))

    # -- how it ends -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _on_exception(self, hook: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.call(hook, error)
            raise

    def _leave(self) -> None:
        self.logger.warning("SIGTERM: the training ends after step %d.", self.global_step)
        if self.checkpoint.steps:
            self.checkpoint.save_last(self)
        sys.exit(Termination.STATUS)
