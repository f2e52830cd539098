"""Callbacks that save and load checkpoints, at any fsspec URL."""

from __future__ import annotations

import re
from concurrent.futures import Future
from datetime import datetime
from string import Formatter
from typing import TYPE_CHECKING, Any

from fsspec_csx.checkpoint.api import inspect, save
from fsspec_csx.checkpoint.async_save import async_save
from fsspec_csx.errors import CheckpointError
from fsspec_csx.manage.completeness import check_complete
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer import checkpoint_loading, checkpoint_root, processes, state_validation, training_state
from fsspec_csx.trainer.callback import Callback
from fsspec_csx.trainer.partial_states import LoadCheckpointStates

if TYPE_CHECKING:
    import torch

    from fsspec_csx.trainer.trainer import Trainer

_TIMESTAMP = "%Y%m%d_%H%M%S"


class Checkpoint(Callback):
    """Saves the training every so many steps, and finds the newest checkpoint to resume from.

    A checkpoint is written in the background, of a copy that is made before the training goes on; if that fails, the
    training ends with its error at the next step. The next one waits for it. The end of ``fit`` does, too.

    A sharded one is a folder that ``torch.distributed.checkpoint`` reads, too. Each process writes its own parts, side
    by side, and the manifest comes last: without it there is no checkpoint. In the background the processes speak by a
    group of their own (gloo), which does not disturb the training. They all get the error of any. A process that is
    alone writes it before the training goes on.

    Args:
        steps: steps between checkpoints; the last step has one, too. None or 0 to save none.
        autoload_last_checkpoint: whether ``fit`` and ``validate`` load the newest one there is, where no ``ckpt_path``
            is given.
        disable_strict_checkpoint_loading: whether a checkpoint may lack tensors of the model, have others, or have some
            in other shapes; these are left as they are, with a warning.
        save_initial_checkpoint: whether to save before the first step.
        checkpoint_root: where checkpoints are, an fsspec URL or a local path; the trainer's ``model_dir`` if None.
        checkpoint_name: of a checkpoint, with ``{step}`` in it.
        asynchronous: if False, the training waits until each checkpoint is whole.
        sharded: whether each process saves its own parts, or the first one all; None for what the model is.

    Attributes:
        root: where checkpoints are, without a slash at its end.
        resumed_from: the path that was loaded; None if none was.
        follows_validation: whether a step that is validated, too, is saved after that.
        saved_at: the step of the last save, or of the checkpoint of this root that was loaded.

    Raises:
        ValueError: for a number or a name that makes no sense.
    """

    def __init__(
        self,
        steps: int | None = None,
        autoload_last_checkpoint: bool = True,
        disable_strict_checkpoint_loading: bool = False,
        save_initial_checkpoint: bool = False,
        checkpoint_root: str | None = None,
        checkpoint_name: str = "checkpoint_{step}.mdl",
        asynchronous: bool = True,
        sharded: bool | None = None,
    ) -> None:
        if steps is not None and (type(steps) is not int or steps < 0):
            msg = f"steps is a whole number or None, not {steps!r}. Give the steps between two checkpoints."
            raise ValueError(msg)
        fields = [name for _, name, _, _ in Formatter().parse(checkpoint_name) if name is not None]
        if fields != ["step"] or "/" in checkpoint_name:
            msg = f"{checkpoint_name!r} cannot name checkpoints: it must have {{step}} in it once, and no slash. "
            raise ValueError(msg + "Give a name such as 'checkpoint_{step}.mdl'.")
        self.steps = steps
        self.autoload_last_checkpoint = autoload_last_checkpoint
        self.disable_strict_checkpoint_loading = disable_strict_checkpoint_loading
        self.save_initial_checkpoint = save_initial_checkpoint
        self.checkpoint_root = checkpoint_root
        self.checkpoint_name = checkpoint_name
        self.asynchronous = asynchronous
        self.sharded = sharded
        self.root = ""
        self.resumed_from: str | None = None
        self.saved_at: int | None = None
        self.follows_validation = False
        self._is_due = False
        self._pending: tuple[str, Future[None]] | None = None
        self._in_parts = bool(sharded)
        self._group: Any = None

    def setup(self, trainer: Trainer) -> None:
        """Settle the root, and show now, not after hours, whether it can be written to."""
        self.root = str(self.checkpoint_root or trainer.model_dir).rstrip("/") or "/"
        self._in_parts = processes.has_shards(trainer.model) if self.sharded is None else self.sharded
        if (self.steps or self.save_initial_checkpoint) and processes.is_first():
            checkpoint_root.check_writable(self.root)

    # -- saving ----------------------------------------------------------------------------------------------------

    def on_train_start(
        self, trainer: Trainer, model: torch.nn.Module, train_dataloader: Any, loop: Any, loop_idx: int
    ) -> None:
        if loop_idx == 0 and self.save_initial_checkpoint and self.resumed_from is None:
            trainer.save_checkpoint()

    def on_train_batch_end(
        self, trainer: Trainer, model: torch.nn.Module, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        if self._pending is not None and self._pending[1].done() and not self.failed:
            (path, _), self._pending = self._pending, None
            self._whole(trainer, path)
        due = bool(self.steps) and (trainer.global_step % (self.steps or 1) == 0 or trainer.is_last_step)
        self._is_due = trainer.stepped and due
        if self._is_due and not (self.follows_validation and trainer.validates_next):
            trainer.save_checkpoint()

    def save_if_due(self, trainer: Trainer) -> None:
        """After a validation, save what waited for it."""
        if self._is_due:
            trainer.save_checkpoint()

    def save(self, trainer: Trainer) -> str:
        """Save the training as it is now; by all processes together, which write their parts, or the first one all.

        Returns:
            The path, at which the checkpoint will be once it is whole; empty where another process writes it.

        Raises:
            OSError: what the filesystem raised, of this save or the one before it.
        """
        self._is_due = False
        self.wait(trainer)
        saved: dict[str, Any] = training_state.collect(trainer, sharded=self._in_parts)
        trainer.call("on_save_checkpoint", saved)
        trainer.call("postprocess_checkpoint", saved)
        trainer_state: dict[str, Any] = {}
        trainer.call("on_save_trainer_state", trainer_state)
        if trainer_state:
            saved["trainer_state"] = trainer_state
        self.saved_at = trainer.global_step
        path = self.get_checkpoint_path(trainer.global_step) if processes.is_first() else ""
        path = processes.broadcast(path) if self._in_parts else path
        if not path:
            return path
        if processes.is_first():
            trainer.logger.info("Saving checkpoint at step %d", trainer.global_step)
        if self._in_parts:
            self._save_parts(trainer, saved, path)
        elif self.asynchronous:
            self._pending = path, async_save(saved, path)
        else:
            save(saved, path)
            self._whole(trainer, path)
        return path

    def _save_parts(self, trainer: Trainer, saved: dict[str, Any], path: str) -> None:
        from fsspec_csx.trainer.sharding import ShardedSave  # only here, as it imports torch.distributed.checkpoint

        self._group = self._group or processes.new_group()
        # To be silent about it, a process without others changes the filters of warnings, which all threads share.
        background = self.asynchronous and self._group is not None
        saving = ShardedSave(trainer, saved, copied=background)
        if background:
            self._pending = path, saving.start(path, self._group)
        else:
            saving.write(path, self._group)
            self._whole(trainer, path)

    def save_last(self, trainer: Trainer) -> None:
        """Save the training as it is now, unless that was done, and wait until the checkpoint is whole."""
        if self.saved_at != trainer.global_step:
            trainer.save_checkpoint()
        self.wait(trainer)

    def wait(self, trainer: Trainer) -> None:
        """Wait until the last checkpoint is whole; all processes must call it.

        Raises:
            OSError: what the filesystem raised when it was written.
            RuntimeError: if another process failed to write it.
        """
        error = self._finished(trainer)
        (failed,) = processes.any_process(error is not None)
        if error is not None:
            raise error
        if failed:
            msg = "Another process did not save the last checkpoint. Its error says why."
            raise RuntimeError(msg)

    def _finished(self, trainer: Trainer) -> BaseException | None:
        """Wait until what this process saves is whole; the error, if it fails."""
        if self._pending is None:
            return None
        (path, future), self._pending = self._pending, None
        try:
            future.result()
            self._whole(trainer, path)
        except Exception as error:
            return error
        return None

    @property
    def failed(self) -> bool:
        """Whether it is known that the last checkpoint could not be saved, which ``wait`` will raise."""
        return self._pending is not None and self._pending[1].done() and self._pending[1].exception() is not None

    def _whole(self, trainer: Trainer, path: str) -> None:
        if not processes.is_first():
            return
        trainer.logger.info("Saved checkpoint %s", redacted(path))
        trainer.call("on_after_save_checkpoint", path)
        trainer.call("on_after_save_trainer_state", path)

    def get_checkpoint_path(self, step: int) -> str:
        """The path of a step's checkpoint, with the time appended if the name is taken."""
        path = checkpoint_root.join(self.root, self.checkpoint_name.format(step=step))
        if checkpoint_root.exists(path, sharded=self._in_parts):
            stamped = f"{step}_{datetime.now():{_TIMESTAMP}}"
            path = checkpoint_root.join(self.root, self.checkpoint_name.format(step=stamped))
        return path

    def on_fit_end(self, trainer: Trainer, loop: Any) -> None:
        self.wait(trainer)  # so that no process ends before the checkpoint is whole

    def on_fit_exception(self, trainer: Trainer, exception: BaseException) -> None:
        try:
            if self._is_due and isinstance(exception, Exception) and processes.count() == 1:
                self.save(trainer)
            error = self._finished(trainer)
        except Exception as failed:
            error = failed
        if error is not None and error is not exception:  # it must not hide the one that ends the training
            trainer.logger.error("The last checkpoint was not saved: %s", error)

    # -- loading ---------------------------------------------------------------------------------------------------

    def load(self, trainer: Trainer, path: str | None) -> dict[str, Any] | None:
        """Load a checkpoint, and restore all but the position in the data.

        Returns:
            What was loaded; None without a path.

        Raises:
            CheckpointError: a ValueError, if it is damaged, or does not fit the model.
            OSError: what the filesystem raised.
        """
        trainer.call("on_before_load_checkpoint", path)
        if path is None:
            trainer.logger.info("No checkpoint is loaded.")
            return None
        trainer.logger.info("Loading checkpoint %s", redacted(path))
        return self._restored(trainer, path, checkpoint_loading.read(trainer, path, self._states(trainer)))

    def load_latest(self, trainer: Trainer) -> dict[str, Any] | None:
        """Load the newest checkpoint at the root that is whole, or none; older ones take the place of damaged ones.

        Returns:
            As of ``load``.

        Raises:
            CheckpointError: a ValueError, if it does not fit the model, or none is whole and one was finished once.
            OSError: what the filesystem raised.
        """
        paths = processes.broadcast([*reversed(self.get_all_checkpoints(self.root))] if processes.is_first() else [])
        for path in paths:
            trainer.call("on_before_load_checkpoint", path)
            trainer.logger.info("Loading checkpoint %s", redacted(path))
            found = checkpoint_loading.read_if_whole(trainer, path, self._states(trainer))
            if found is not None:
                return self._restored(trainer, path, found)
        # One that was finished, and has changed since, is no reason to begin anew: it raises its error.
        finished = self.get_latest_checkpoint(trainer) if paths and processes.is_first() else None
        return self.load(trainer, processes.broadcast(finished))

    def _restored(self, trainer: Trainer, path: str, found: Any) -> dict[str, Any]:
        self.resumed_from = path
        loaded = training_state.as_training_state(found, path)
        trainer.call("preprocess_checkpoint", loaded)
        training_state.restore(trainer, loaded, path, strict=not self.disable_strict_checkpoint_loading)
        with state_validation.restoring(path, "states"):
            trainer.call("on_load_checkpoint", loaded)
            if "trainer_state" in loaded:
                trainer.call("on_load_trainer_state", loaded["trainer_state"])
        self.saved_at = trainer.global_step if self.matches_name(path) else None
        return loaded

    def _states(self, trainer: Trainer) -> list[str] | None:
        """The states that are to be loaded; None for all."""
        chosen = [each.states for each in trainer.callbacks if isinstance(each, LoadCheckpointStates)]
        return next((states for states in chosen if states is not None), None)

    def get_latest_checkpoint(self, trainer: Trainer) -> str | None:
        """The newest checkpoint at the root that is whole; None if there is none.

        Raises:
            OSError: what the filesystem raised.
        """
        for path in reversed(self.get_all_checkpoints(self.root)):
            try:
                if inspect(path).format == "distributed":
                    check_complete(path)
            except (CheckpointError, FileNotFoundError, IsADirectoryError) as error:  # a folder without its manifest
                trainer.logger.warning("%s is passed over: %s", redacted(path), error)
                continue
            return path
        return None

    def get_all_checkpoints(self, ckpt_dir: str) -> list[str]:
        """The checkpoints in a folder that have names of this callback's, by step and time, the newest last."""
        found = []
        for name in checkpoint_root.list_names(ckpt_dir):
            if match := self._pattern().fullmatch(name):
                found.append((int(match["step"]), match["time"] or "", name))
        return [checkpoint_root.join(ckpt_dir, name) for _, _, name in sorted(found)]

    def matches_name(self, path: str) -> bool:
        """Whether a path is one that this callback would give to a checkpoint."""
        folder, _, name = path.rpartition("/")
        return folder == self.root.rstrip("/") and self._pattern().fullmatch(name) is not None

    def _pattern(self) -> re.Pattern[str]:
        before, after = (re.escape(part.format()) for part in self.checkpoint_name.split("{step}"))
        return re.compile(rf"{before}(?P<step>\d+)(?:_(?P<time>\d{{8}}_\d{{6}}))?{after}")
