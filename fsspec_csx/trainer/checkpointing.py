"""Checkpoint: the callback that saves and loads checkpoints at any fsspec URL."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fsspec_csx.checkpoint.api import inspect, save
from fsspec_csx.checkpoint.async_save import async_save, release_buffers
from fsspec_csx.errors import CheckpointError, text_of
from fsspec_csx.manage.list import check_complete
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer import checkpoint_root, modelzoo_state, processes, state_validation, training_state
from fsspec_csx.trainer.callback import Callback
from fsspec_csx.trainer.checkpoint_root import CheckpointNames
from fsspec_csx.trainer.partial_states import LoadCheckpointStates
from fsspec_csx.trainer.pending_saves import LocalDisk, PendingSaves

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_ONE_FILE = "local_dir works only with single-file formats. Leave it out, or use sharded=False and no format."


@dataclass(eq=False, repr=False)
class Checkpoint(Callback):
    """Saves a checkpoint at intervals, and finds the newest checkpoint to resume from.

    A copy of the state is written in the background. If the write fails, the training raises the error at the next
    step. The next save and the end of ``fit`` wait for the write.

    A sharded checkpoint is a folder for ``torch.distributed.checkpoint``. All processes write their own parts in
    parallel, and the first one writes the manifest last. The checkpoint is incomplete without it. Background saves use
    a separate gloo group. If one process fails, all raise its error.

    With ``local_dir``, a checkpoint is written to the local disk first, and uploaded from there. A run loads the newest
    checkpoint of the disk and the root. A failed upload is a warning: the next save, or the next ``fit`` after a killed
    one, uploads the checkpoint. If uploads still fail at the end of ``fit``, it raises the error.

    Args:
        steps: the number of steps between checkpoints; the last step is also saved. None or 0 saves none.
        autoload_last_checkpoint: whether ``fit`` and ``validate`` load the newest checkpoint without a ``ckpt_path``.
        disable_strict_checkpoint_loading: whether to skip missing and unexpected tensors, and tensors of another
            shape, with a warning.
        save_initial_checkpoint: whether to save before the first step.
        checkpoint_root: the folder of checkpoints, an fsspec URL or a local path; by default the ``model_dir``.
        checkpoint_name: the name of a checkpoint, with ``{step}`` in it.
        asynchronous: if False, the training waits until each checkpoint is complete (in ``local_dir`` if given).
        sharded: whether each process saves its own parts; by default whether the model is sharded.
        format: "cerebras" for checkpoints that the ModelZoo resumes from, on S3; None for torch files.
        local_dir: a folder on a local disk; several runs may share it.
        keep_local: how many checkpoints of this root to keep there. While uploads fail, the newest replaces the oldest,
            with a warning.

    Attributes:
        root: the folder of checkpoints, without a slash at its end.
        resumed_from: the path of the loaded checkpoint; None if none was loaded.
        follows_validation: whether a step that is also validated is saved after the validation.
        saved_at: the step of the last save, or of the loaded checkpoint of this root.
        local: the copies on the local disk; None without ``local_dir``.
        saves: the saves in the background.

    Raises:
        ValueError: for an invalid number or name.
    """

    steps: int | None = None
    autoload_last_checkpoint: bool = True
    disable_strict_checkpoint_loading: bool = False
    save_initial_checkpoint: bool = False
    checkpoint_root: str | None = None
    checkpoint_name: str = "checkpoint_{step}.mdl"
    asynchronous: bool = True
    sharded: bool | None = None
    format: Literal["cerebras"] | None = None
    local_dir: str | None = None
    keep_local: int = 2

    def __post_init__(self) -> None:
        state_validation.check_count("steps", self.steps, "Give the steps between two checkpoints.", least=0)
        self._names = CheckpointNames(self.checkpoint_name)
        if self.format is not None and (self.format != "cerebras" or self.sharded):
            msg = f"The format is 'cerebras', which is not sharded, or None, not {self.format!r}. Give one of these."
            raise ValueError(msg)
        if self.local_dir is not None and (self.format or self.sharded):
            raise ValueError(_ONE_FILE)
        self.sharded = False if self.format else self.sharded
        self.local = None if self.local_dir is None else LocalDisk(self.local_dir, self.keep_local, self._names)
        self.saves = PendingSaves(self.local)
        self.root = ""
        self.resumed_from: str | None = None
        self.saved_at: int | None = None
        self.follows_validation = False
        self._is_due = False
        self._in_parts = bool(self.sharded)

    def setup(self, trainer: Trainer) -> None:
        """Determine the root, and check before the training that it is writable."""
        self.root = str(self.checkpoint_root or trainer.model_dir).rstrip("/") or "/"
        self._in_parts = processes.has_shards(trainer.model) if self.sharded is None else self.sharded
        if self.local is not None:
            if self._in_parts:
                raise ValueError(_ONE_FILE)
            self.local.root = self.root
        if (self.steps or self.save_initial_checkpoint) and processes.is_first():
            checkpoint_root.check_writable(self.root, self.format)

    # -- saving ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, model: Any, train_dataloader: Any, loop: Any, loop_idx: int) -> None:
        if loop_idx == 0 and self.save_initial_checkpoint and self.resumed_from is None:
            trainer.save_checkpoint()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self.saves.report_ended(trainer)
        due = bool(self.steps) and (trainer.global_step % (self.steps or 1) == 0 or trainer.is_last_step)
        self._is_due = trainer.stepped and due
        if self._is_due and not (self.follows_validation and trainer.validates_next):
            trainer.save_checkpoint()

    def save_if_due(self, trainer: Trainer) -> None:
        """After a validation, save the checkpoint that was waiting for it."""
        if self._is_due:
            trainer.save_checkpoint()

    def save(self, trainer: Trainer) -> str:
        """Save the current state of the training; all processes must call it.

        Returns the path of the checkpoint, or an empty string on processes that do not write it. The filesystem may
        raise an OSError, in this save or in the previous one.
        """
        self._is_due = False
        self.saves.wait(trainer, local=self.local is not None)
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
        if self.format is not None:
            saved = modelzoo_state.to_modelzoo(trainer, saved)
        if (begun := self._write(trainer, saved, path)) is None:
            self.saves.report(trainer, path)
        else:
            self.saves.add(path, begun)
            if not self.asynchronous and (error := self.saves.finish(trainer, local=True)):
                raise error
        return path

    def _write(self, trainer: Trainer, saved: dict[str, Any], path: str) -> Future[None] | None:
        """Return the save in the background; None if the checkpoint is complete."""
        if self._in_parts:
            from fsspec_csx.trainer import sharding  # only here, as it imports torch.distributed.checkpoint

            return sharding.save(trainer, saved, path, background=self.asynchronous)
        if self.local is not None:
            return async_save(saved, path, local=self.local.folder, keep_local=self.keep_local)
        if self.asynchronous:
            return async_save(saved, path, format=self.format)
        save(saved, path, format=self.format)
        return None

    def save_last(self, trainer: Trainer) -> None:
        """Save the current step unless it is already saved, and wait until the checkpoint is complete."""
        if self.saved_at != trainer.global_step:
            trainer.save_checkpoint()
        self.saves.wait(trainer)

    def get_checkpoint_path(self, step: int) -> str:
        """Return the path for a step, with the time appended if the name is taken or the root cannot be reached."""
        name = self._names.of(step)
        path = checkpoint_root.join(self.root, name)
        try:
            # After a failed upload, a request to the root may take as long as the next failure.
            taken = self.local is not None and (self.saves.has_failed_uploads or name in self.local.tier.pending())
            taken = taken or checkpoint_root.exists(path, sharded=self._in_parts, format=self.format)
        except OSError:
            if self.local is None:
                raise
            taken = True
        return checkpoint_root.join(self.root, self._names.of(step, taken=True)) if taken else path

    def on_fit_start(self, trainer: Trainer, train_dataloader: Any, val_dataloader: Any, loop: Any) -> None:
        self._upload_left(is_new_run=self.saved_at is None)

    def on_fit_end(self, trainer: Trainer, loop: Any) -> None:
        self.saves.wait(trainer)  # no process may end before the checkpoint is complete
        release_buffers()

    def on_fit_exception(self, trainer: Trainer, exception: BaseException) -> None:
        try:
            if self._is_due and isinstance(exception, Exception) and processes.count() == 1:
                self.save(trainer)
            error = self.saves.finish(trainer)
        except Exception as failed:
            error = failed
        if error is not None and error is not exception:  # it must not hide the error of the training
            trainer.logger.error("The last checkpoint was not saved: %s", text_of(error))

    # -- loading ---------------------------------------------------------------------------------------------------

    def load(self, trainer: Trainer, path: str | None) -> dict[str, Any] | None:
        """Load a checkpoint (None loads none), and restore everything but the position in the data.

        Raises a CheckpointError if it is damaged or does not fit the model.
        """
        trainer.call("on_before_load_checkpoint", path)
        if path is None:
            trainer.logger.info("No checkpoint is loaded.")
            return None
        trainer.logger.info("Loading checkpoint %s", redacted(path))
        if self.matches_name(path):
            self._upload_first(trainer)
        found = training_state.read(trainer, self._source(path), self._states(trainer))
        return self._restore(trainer, path, found)

    def load_latest(self, trainer: Trainer) -> dict[str, Any] | None:
        """Load the newest complete checkpoint at the root; return None if there is none. Damaged ones are skipped.

        Raises a CheckpointError if it does not fit the model, or if all are damaged and one was complete.
        """
        if self.local is not None and processes.is_first():
            self.local.warn_if_alone()
        self._upload_first(trainer)
        paths = processes.broadcast([*reversed(self.get_all_checkpoints(self.root))] if processes.is_first() else [])
        for path in paths:
            trainer.call("on_before_load_checkpoint", path)
            trainer.logger.info("Loading checkpoint %s", redacted(path))
            found = training_state.read_if_whole(trainer, self._source(path), self._states(trainer))
            if found is not None:
                return self._restore(trainer, path, found)
        # A complete checkpoint that was damaged later raises its error; a new training would hide the damage.
        finished = self.get_latest_checkpoint(trainer) if paths and processes.is_first() else None
        return self.load(trainer, processes.broadcast(finished))

    def _restore(self, trainer: Trainer, path: str, found: Any) -> dict[str, Any]:
        self.resumed_from = path
        loaded = modelzoo_state.from_modelzoo(trainer, training_state.as_training_state(found, path), path)
        trainer.call("preprocess_checkpoint", loaded)
        training_state.restore(trainer, loaded, path, strict=not self.disable_strict_checkpoint_loading)
        with state_validation.restoring(path, "states"):
            trainer.call("on_load_checkpoint", loaded)
            if "trainer_state" in loaded:
                trainer.call("on_load_trainer_state", loaded["trainer_state"])
        self.saved_at = trainer.global_step if self.matches_name(path) else None
        return loaded

    def _states(self, trainer: Trainer) -> list[str] | None:
        chosen = (each.states for each in trainer.get_callbacks(LoadCheckpointStates))
        return next((states for states in chosen if states is not None), None)

    def get_latest_checkpoint(self, trainer: Trainer) -> str | None:
        """Return the path of the newest complete checkpoint at the root; None if there is none."""
        for path in reversed(self.get_all_checkpoints(self.root)):
            try:
                if inspect(self._find(path)).format == "distributed":
                    check_complete(path)
            except (CheckpointError, FileNotFoundError, IsADirectoryError) as error:  # a folder without its manifest
                trainer.logger.warning("%s is skipped: %s", redacted(path), error)
                continue
            return path
        return None

    def get_all_checkpoints(self, ckpt_dir: str) -> list[str]:
        """Return the paths in a folder that match ``checkpoint_name``, by step and time, the newest last."""
        own = self.local.tier.pending() if self.local is not None and ckpt_dir == self.root else []
        found = self._names.in_order({*checkpoint_root.list_names(ckpt_dir), *own})
        return [checkpoint_root.join(ckpt_dir, name) for _, _, name in found]

    def _find(self, path: str) -> str:
        """Return the path to read a checkpoint from: the local copy, if it is good."""
        return self.local.find(path) if self.local is not None and self.matches_name(path) else path

    def _source(self, path: str) -> str:
        """Return the path for all processes to read: their local copies, if each has a good one."""
        found = self._find(path)
        (missing,) = processes.any_process(found == path)
        return path if missing else found

    def _upload_first(self, trainer: Trainer) -> None:
        """Upload what is only on this machine's disk, so that processes on other machines can load it."""
        if self.local is not None and processes.count() > 1:
            self._upload_left()
            self.saves.wait(trainer)

    def _upload_left(self, *, is_new_run: bool = False) -> None:
        """Upload what earlier processes left on the local disk, see ``LocalDisk.upload_left``."""
        if self.local is not None and processes.is_first():
            for path, upload in self.local.upload_left(is_new_run=is_new_run):
                self.saves.add(path, upload)

    def step_of(self, path: str) -> int:
        """Return the step in the name of a checkpoint; below 0 for other names."""
        return self._names.order(path.rpartition("/")[2])[0]

    def matches_name(self, path: str) -> bool:
        """Whether a path is in the root and matches ``checkpoint_name``."""
        return path.rpartition("/")[0] == self.root.rstrip("/") and self.step_of(path) >= 0
