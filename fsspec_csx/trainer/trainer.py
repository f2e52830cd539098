"""Trainer: trains and validates a model, and saves checkpoints from which the next run resumes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import Logger as PythonLogger
from typing import Any, TypeVar

import torch

from fsspec_csx.trainer import checkpoint_root, processes, random_states, training, training_state
from fsspec_csx.trainer.batches import Batches
from fsspec_csx.trainer.callback import Callback, check_hooks
from fsspec_csx.trainer.checkpointing import Checkpoint
from fsspec_csx.trainer.loggers import Logger, Logging, ProgressLogger
from fsspec_csx.trainer.loop import EarlyExit, TrainingLoop, ValidationLoop, as_list
from fsspec_csx.trainer.precision import Precision

_UNSET: Any = ...
LOADED: Any = object()
"""The ``ckpt_path`` of a validation of what was loaded before it."""
_SomeCallback = TypeVar("_SomeCallback", bound=Callback)


class Trainer:
    """Trains and validates a model.

    Under ``torchrun`` all processes train together. DistributedDataParallel wraps the model, unless it is already
    wrapped or sharded (by ``fully_shard``). Each process saves and loads its own part of a sharded model; the first
    process saves any other model. A run may resume with another number of processes. The data loader must give each
    process its own samples, for example with a ``DistributedSampler``.

    Args:
        device: ``"CPU"``, ``"GPU"`` or any device of torch; by default a GPU if there is one.
        backend: the ModelZoo's alternative to ``device``: a name, a mapping with ``backend_type``, or an object with
            this attribute. CSX trains on the default device, with a warning.
        model_dir: a local folder for logs, and for checkpoints if there is no ``checkpoint_root``.
        model: a module, or a function that returns one. For a batch the module returns the loss, a mapping with the key
            ``loss``, or a sequence that begins with the loss.
        optimizer: an optimizer, or a function of the model that returns one; None to validate only.
        schedulers: one or more schedulers, or functions of the optimizer that return one. Each makes a step after each
            step of the optimizer.
        precision: mixed precision and clipping.
        sparsity: not supported; must be None.
        loop: how long to train and how often to validate; by default one epoch.
        checkpoint: when and where to save; by default nothing is saved, but the newest checkpoint is loaded.
        logging: how often to log.
        callbacks: callbacks, in the order of their calls.
        loggers: destinations of metrics; by default the console.
        seed: the seed of all random generators.

    Attributes:
        global_step: the number of steps made, including those before a resume.
        stepped: whether the last batch completed a step.
        is_last_step: whether the training ends with this step.
        is_first_iteration: whether this batch is the first of a validation, or of the training between two validations.
        is_final_iteration: whether it is the last of these; False if the length of the validation data is unknown.
        validates_next: whether a validation follows the last batch.
        is_fitting: whether ``fit`` is running.
        batches: the training data; None outside ``fit``.
        early_exit: ends the training when a registered function returns True.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: for sparsity, an unknown device or backend, or if both are given.
        PermissionError: if the checkpoint root is not writable.
        OSError: for any other error of the filesystem in this check.
    """

    def __init__(
        self,
        device: str | torch.device | None = None,
        backend: Any = None,
        model_dir: str | os.PathLike[str] = "./model_dir",
        model: torch.nn.Module | Callable[[], torch.nn.Module] | None = None,
        optimizer: torch.optim.Optimizer | Callable[[torch.nn.Module], torch.optim.Optimizer] | None = None,
        schedulers: Any = None,
        precision: Precision | None = None,
        sparsity: Any = None,
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
        if sparsity is not None:
            msg = "Sparsity needs Cerebras hardware: torch's optimizers train dense weights. Remove sparsity."
            raise ValueError(msg)
        self.model_dir = os.fspath(model_dir)
        self.precision = precision or Precision()
        self.loop = loop or TrainingLoop()
        self.checkpoint = checkpoint or Checkpoint()
        self.logging = logging or Logging()
        self.loggers = [ProgressLogger()] if loggers is None else [*loggers]
        added = [*(callbacks or ()), *self.loggers]
        self.early_exit = EarlyExit()
        # Checkpoint comes last, so that it saves the changes of the other callbacks.
        self.callbacks: list[Callback] = [self.precision, self.loop, self.logging, self.early_exit, *added]
        self.callbacks.append(self.checkpoint)
        for each in self.callbacks:
            if not isinstance(each, Callback):
                msg = f"{each!r} is not a Callback. Derive its class from fsspec_csx.trainer.Callback."
                raise TypeError(msg)
        check_hooks(self.callbacks)
        self.global_step = 0
        self.stepped = self.is_last_step = self.validates_next = self.is_fitting = False
        self.is_first_iteration = self.is_final_iteration = False
        self.batches: Batches | None = None
        self._scopes: list[str] = []
        self.call("pre_setup")
        self.device = processes.select_device(device, backend)
        processes.join(self.device)
        if seed is not None:
            random_states.seed(seed)
        self._set_up(model, optimizer, schedulers)
        self.call("setup")
        self.call("post_setup")

    def __del__(self) -> None:
        for callback in getattr(self, "callbacks", ()):
            if isinstance(callback, Callback):
                callback.finalize()

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
            msg = "There are schedulers, but no optimizer. Give an optimizer too."
            raise TypeError(msg)
        self.schedulers: list[Any] = [each if hasattr(each, "step") else each(optimizer) for each in schedulers]

    # -- callbacks and metrics -------------------------------------------------------------------------------------

    def call(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Call a hook of all callbacks in order, with the trainer as its first argument."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *args, **kwargs)

    def get_callbacks(self, callback_type: type[_SomeCallback]) -> list[_SomeCallback]:
        """Return the callbacks of a type in order."""
        return [each for each in self.callbacks if isinstance(each, callback_type)]

    def get_callback(self, callback_type: type[_SomeCallback]) -> _SomeCallback | None:
        """Return the first callback of a type; None if there is none."""
        return next(iter(self.get_callbacks(callback_type)), None)

    @property
    def logger(self) -> PythonLogger:
        """The logger for messages."""
        return self.logging.logger

    @property
    def is_log_step(self) -> bool:
        """Whether metrics of the last step are logged."""
        return self.logging.is_log_step(self)

    def log_metrics(self, **metrics: Any) -> None:
        """Send metrics of this step to all loggers."""
        self.log_metrics_dict(metrics)

    def log_metrics_dict(self, metrics: Mapping[str, Any], step: int | None = None, dest: Any = None) -> None:
        """Send metrics to loggers.

        Args:
            metrics: numbers, or tensors of one number, by name.
            step: the step of the metrics; by default the current one.
            dest: the class of loggers or its name, or a list of these; by default all loggers.
        """
        if not processes.is_first():
            return
        numbers = {"/".join([*self._scopes, name]): float(value) for name, value in metrics.items()}
        chosen = {each if isinstance(each, str) else each.__name__ for each in as_list(dest)}
        for logger in self.loggers:
            if dest is None or not chosen.isdisjoint(each.__name__ for each in type(logger).__mro__):
                logger.log_metrics(numbers, self.global_step if step is None else step)

    @contextlib.contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Prefix the names of metrics within the block: ``name/metric``."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    @contextlib.contextmanager
    def reporting(self, hook: str) -> Iterator[None]:
        """Call a hook with the exception that ends the block."""
        try:
            yield
        except BaseException as error:
            self.call(hook, error)
            raise

    # -- training --------------------------------------------------------------------------------------------------

    def fit(self, train_dataloader: Any, val_dataloader: Any = None, ckpt_path: Any = _UNSET) -> None:
        """Train, and validate at intervals.

        On SIGTERM the trainer completes and saves the current step (if it saves checkpoints at all), and the process
        exits with status 143. Several processes do so together, within about a second. Random numbers that a validation
        draws do not change the training.

        Args:
            train_dataloader: batches to train with.
            val_dataloader: batches to validate with, or several such loaders.
            ckpt_path: the checkpoint to resume from; None for a new training. The default is the newest complete
                checkpoint at the checkpoint root, if ``autoload_last_checkpoint`` is set.

        Raises:
            TypeError: without an optimizer, or with a loop that only validates.
            CheckpointError: a ValueError, if the checkpoint is damaged or does not fit the model.
            OSError: for an error of the filesystem, also while a checkpoint is saved.
        """
        loop = self.loop
        if not isinstance(loop, TrainingLoop) or self.optimizer is None:
            msg = "Training takes an optimizer and a TrainingLoop. Give them to the Trainer."
            raise TypeError(msg)
        with contextlib.ExitStack() as stack:
            self.call("on_enter_fit", stack, train_dataloader, val_dataloader, loop)
            stack.callback(setattr, self, "batches", None)
            stack.callback(setattr, self, "is_fitting", False)
            stack.enter_context(self.reporting("on_fit_exception"))
            terminated = stack.enter_context(training.deferred_sigterm())
            limit = loop.steps_per_epoch and loop.steps_per_epoch * loop.grad_accum_steps
            self.batches = Batches(train_dataloader, limit, processes.count())
            loaded = self._load(ckpt_path)
            steps = range(self.global_step, loop.last_step(train_dataloader, self.global_step))
            self.call("on_fit_start", train_dataloader, val_dataloader, loop)
            if loaded is not None:
                training_state.restore_position(self, loaded, self.checkpoint.resumed_from or "")
                del loaded
            self.is_fitting = True
            training.run(self, train_dataloader, val_dataloader, loop, steps, terminated)
            self.call("on_fit_end", loop)

    def forward(self, batch: Any) -> dict[str, Any]:
        """Call the model with a batch, and return its output with the key ``loss``; a TypeError if it has no loss."""
        args, kwargs = [batch], dict[str, Any]()
        self.call("on_before_forward", self.model, batch, args, kwargs)
        with self.precision.autocast_context_manager():
            outputs = training.as_outputs(self.model(*args, **kwargs))
        self.call("on_after_forward", self.model, outputs, batch)
        return outputs

    # -- validation ------------------------------------------------------------------------------------------------

    def validate(
        self, val_dataloader: Any = None, ckpt_path: Any = _UNSET, loop: ValidationLoop | None = None
    ) -> dict[str, float]:
        """Validate the model.

        Args:
            val_dataloader: batches to validate with.
            ckpt_path: the checkpoint to validate; see ``fit``.
            loop: how long to validate; by default the trainer's loop.

        Returns:
            The means over the batches of ``loss`` and of the other numbers that the model returns.

        Raises:
            CheckpointError, OSError: see ``fit``.
        """
        loop = loop or (self.loop.val_loop if isinstance(self.loop, TrainingLoop) else self.loop)
        with contextlib.ExitStack() as stack:
            self.call("on_enter_validate", stack, val_dataloader, loop)
            stack.enter_context(self.reporting("on_validate_exception"))
            if ckpt_path is not LOADED:
                self._load(ckpt_path)
            training.validate(self, val_dataloader, loop)
        return loop.metrics

    def validate_all(
        self, val_dataloaders: Any = None, ckpt_paths: Any = _UNSET, loop: ValidationLoop | None = None
    ) -> list[tuple[str | None, list[dict[str, float]]]]:
        """Validate several checkpoints, each with several loaders and with the callbacks' own validations.

        Args:
            val_dataloaders: one loader or several.
            ckpt_paths: one or several paths, or patterns such as ``checkpoint_*.mdl``, whose matches are sorted by
                number. The default and None are as for ``ckpt_path`` of ``fit``.
            loop: see ``validate``.

        Returns:
            The path of each checkpoint (None if none was loaded), and its metrics for each loader.

        Raises:
            FileNotFoundError: if a path does not exist, or nothing matches a pattern.
            CheckpointError, OSError: see ``fit``.
        """
        loaders = as_list(val_dataloaders)
        single = ckpt_paths is None or ckpt_paths is _UNSET
        paths = [ckpt_paths] if single else checkpoint_root.matching(as_list(ckpt_paths))
        found = []
        with contextlib.ExitStack() as stack:
            self.call("on_enter_validate_all", stack, loaders, loop, paths)
            for path in paths:
                loaded = self._load(path)
                metrics = [dict(self.validate(loader, LOADED, loop)) for loader in loaders]
                found.append((None if loaded is None else self.checkpoint.resumed_from, metrics))
                self.call("run_validation", None, True)
        return found

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save_checkpoint(self) -> str:
        """Save the current state of the training, in the background if the checkpoint is ``asynchronous``.

        Returns the path of the checkpoint, or an empty string on processes that do not write it.
        """
        return self.checkpoint.save(self)

    def load_checkpoint(self, ckpt_path: Any = None) -> None:
        """Load a checkpoint as ``fit`` does, but without the position in the data; None loads nothing."""
        self._load(ckpt_path)

    def _load(self, path: Any) -> dict[str, Any] | None:
        if path is _UNSET and self.checkpoint.autoload_last_checkpoint:
            return self.checkpoint.load_latest(self)
        path = None if path is _UNSET else path
        return self.checkpoint.load(self, None if path is None else os.fspath(path))
