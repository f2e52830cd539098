"""Logging of metrics: to the console, to TensorBoard, and to Weights & Biases."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec_csx.trainer import processes
from fsspec_csx.trainer.callback import Callback
from fsspec_csx.trainer.state_validation import check_count

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_RESUME = ("auto", "allow", "must", "never")


@dataclass(eq=False, repr=False)
class Logging(Callback):
    """How often metrics are logged, and the level of messages.

    Args:
        log_steps: the number of steps between logs; None for the last step only.
        log_level: a level of Python's logging, as a name or a number.
    """

    log_steps: int | None = 1
    log_level: str | int = "INFO"

    def __post_init__(self) -> None:
        check_count("log_steps", self.log_steps, "Give such a number, or None.")
        self.logger = logging.getLogger("fsspec_csx.trainer")

    def pre_setup(self, trainer: Trainer) -> None:
        self.logger.setLevel(self.log_level)
        if not logging.getLogger().handlers and not self.logger.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
            self.logger.addHandler(handler)

    def setup(self, trainer: Trainer) -> None:
        """Let only the first process log messages below warnings."""
        if not processes.is_first():
            self.logger.setLevel(max(self.logger.level, logging.WARNING))

    def is_log_step(self, trainer: Trainer, ahead: int = 0) -> bool:
        """Return whether metrics of this step, or of one so many steps ahead, are logged."""
        every = self.log_steps
        return trainer.is_last_step or (every is not None and (trainer.global_step + ahead) % every == 0)


class Logger(Callback):
    """Receives the metrics of a run, in the first process."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log the metrics of a step."""
        raise NotImplementedError


class ProgressLogger(Logger):
    """Logs a line with the metrics, the steps and the rate to the console, through Python's logging."""

    def setup(self, trainer: Trainer) -> None:
        self._trainer_logger = trainer.logger
        self._device = str(trainer.device)
        self._last: tuple[float, int] | None = None

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._last = (time.monotonic(), trainer.global_step)

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        parts = [f"step {step}", *(f"{name} {value:.6g}" for name, value in metrics.items())]
        now = time.monotonic()
        if self._last is not None and now > self._last[0] and step > self._last[1]:
            parts.append(f"{(step - self._last[1]) / (now - self._last[0]):.3g} steps/s")
            self._last = (now, step)
        self._trainer_logger.info("%s on %s", ", ".join(parts), self._device)


class TensorBoardLogger(Logger):
    """Writes metrics for TensorBoard; requires the package ``tensorboard``.

    Args:
        summary_dir: the folder; ``tensorboard`` in the trainer's ``model_dir`` if None.
    """

    def __init__(self, summary_dir: str | os.PathLike[str] | None = None) -> None:
        self.summary_dir = summary_dir
        self._writer: Any = None

    def setup(self, trainer: Trainer) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            msg = "The package tensorboard is not installed. Install fsspec-csx[trainer], or remove this logger."
            raise ImportError(msg) from error
        if processes.is_first():
            folder = os.fspath(self.summary_dir or os.path.join(trainer.model_dir, "tensorboard"))
            self._writer = SummaryWriter(folder)

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def _flush(self, *args: Any, **kwargs: Any) -> None:
        if self._writer is not None:
            self._writer.flush()

    on_fit_end = on_fit_exception = on_validate_end = _flush


@dataclass(eq=False, repr=False)
class WandbLogger(Logger):
    """Logs metrics to Weights & Biases; requires the package ``wandb``.

    A training that resumes in the same ``model_dir`` continues its run. Without a network, set ``WANDB_MODE=offline``.

    Args:
        project, group, job_type, tags, entity: as for ``wandb.init``.
        run_id: the identifier of the run; by default that of the last run in ``model_dir``, or a new one.
        run_name: the name of the run.
        resume: ``auto``, ``allow``, ``must`` or ``never``, see ``wandb.init``; ``never`` begins a new run.

    Attributes:
        run: the run of ``wandb``, in the first process.

    Raises:
        ImportError: from the Trainer, if the package is not installed.
        ValueError: for another value of ``resume``.
    """

    project: str | None = None
    group: str | None = None
    run_id: str | None = None
    run_name: str | None = None
    job_type: str | None = None
    tags: Sequence[str] | None = None
    resume: str = "auto"
    entity: str | None = None

    def __post_init__(self) -> None:
        if self.resume not in _RESUME:
            msg = f"resume is one of {', '.join(_RESUME)}, not {self.resume!r}. Give one of these."
            raise ValueError(msg)
        self.run: Any = None
        self._wandb: Any = None

    def pre_setup(self, trainer: Trainer) -> None:
        try:
            import wandb
        except ImportError as error:
            msg = "The package wandb is not installed. Install fsspec-csx[wandb], or remove this logger."
            raise ImportError(msg) from error
        self._wandb = wandb

    def setup(self, trainer: Trainer) -> None:
        if not processes.is_first():
            return
        folder = Path(trainer.model_dir)
        folder.mkdir(parents=True, exist_ok=True)
        # The names hold the time and the identifier of a run.
        runs = sorted(each.name.partition("run-")[2] for each in folder.glob("wandb/*run-*-*"))
        if self.run_id is None and runs and self.resume != "never":
            self.run_id = runs[-1].partition("-")[2]
        names = ("project", "group", "job_type", "tags", "resume", "entity")
        arguments = {name: getattr(self, name) for name in names}
        self.run = self._wandb.init(dir=str(folder), id=self.run_id, name=self.run_name, **arguments)
        self.run.define_metric("*", step_metric="global_step", step_sync=True)

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        self.run.log({"global_step": step, **metrics})

    def finalize(self) -> None:
        if self.run is not None:
            self.run.finish()
            self.run = None
