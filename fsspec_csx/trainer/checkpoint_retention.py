"""Callbacks that delete older checkpoints of this run, if they are complete; never the one from which it resumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsspec_csx.errors import text_of
from fsspec_csx.storage.paths import redacted
from fsspec_csx.trainer import checkpoint_root
from fsspec_csx.trainer.callback import Callback
from fsspec_csx.trainer.loop import as_list
from fsspec_csx.trainer.state_validation import check_count

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer


@dataclass(eq=False, repr=False)
class _Retention(Callback):
    """Tracks the checkpoints of a run, across resumes, and deletes some of them."""

    n: int | None = None

    def __post_init__(self) -> None:
        check_count("n", self.n, "Give how many checkpoints to keep, or None for all.")
        self._names: list[str] = []
        self._to_delete: list[str] = []

    def on_after_save_checkpoint(self, trainer: Trainer, ckpt_path: str) -> None:
        name = ckpt_path.rpartition("/")[2]
        if name not in self._names:  # the loaded checkpoint is in the list, and may be uploaded only now
            self._names.append(name)
        # Delete those that no callback keeps, and retry deletions that failed.
        kept = self.kept() | {*self._names[-1:]}
        self._to_delete += [name for name in self._names if name not in kept]
        self._names = [name for name in self._names if name in kept]
        wanted = {name for each in trainer.callbacks if isinstance(each, _Retention) for name in each.kept()}
        wanted.update(trainer.checkpoint.saves.names)
        self._to_delete = [name for name in self._to_delete if name in wanted or not _deleted(trainer, name)]

    def kept(self) -> set[str]:
        """Return the names of the checkpoints to keep, besides the newest."""
        raise NotImplementedError

    def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        pending = trainer.checkpoint.saves.names
        state_dict.setdefault("retention", {})[type(self).__name__] = {
            "names": [*self._names, *(name for name in pending if name not in self._names)],
            "to_delete": self._to_delete,
        }

    def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        own = state_dict.get("retention", {}).get(type(self).__name__)
        path = trainer.checkpoint.resumed_from
        if own is not None and path is not None and trainer.checkpoint.matches_name(path):
            self._names = [*own["names"], path.rpartition("/")[2]]
            self._to_delete = [*own["to_delete"]]


def _deleted(trainer: Trainer, name: str) -> bool:
    """Delete a checkpoint; return False if the deletion must be tried again."""
    path = checkpoint_root.join(trainer.checkpoint.root, name)
    if path == trainer.checkpoint.resumed_from:
        return False
    if not trainer.checkpoint.matches_name(path):  # the loaded checkpoint may name any file
        return True
    try:
        if trainer.checkpoint.local is not None:
            trainer.checkpoint.local.tier.delete(name)
        checkpoint_root.delete(path)
    except Exception as error:  # a storage failure must not end the training
        trainer.logger.warning("%s was not deleted, which is tried again: %s", redacted(path), text_of(error))
        return False
    return True


class KeepNCheckpoints(_Retention):
    """Keeps the newest checkpoints of a run.

    Args:
        n: the number of checkpoints to keep; None for all.

    Raises:
        ValueError: for a number below 1.
    """

    def kept(self) -> set[str]:
        return {*self._names} if self.n is None else {*self._names[-self.n :]}


@dataclass(eq=False, repr=False)
class KeepBestCheckpoints(_Retention):
    """Keeps the checkpoints of a run with the best validation, and the newest.

    A step that is both validated and saved is saved after the validation. The checkpoint holds the result, so that the
    best checkpoints stay across resumes. With one process it is saved even if the validation fails.

    Args:
        n: the number of best checkpoints to keep; None for all.
        metric: the name of a number in the model's output. NaN is never the best.
        mode: ``min`` if a smaller value is better, or ``max``.

    Raises:
        ValueError: if ``n`` is below 1, or the mode is unknown; from ``fit``, without a validation or such a metric.
    """

    n: int | None = 1
    metric: str = "loss"
    mode: str = "min"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("min", "max"):
            msg = f"mode is 'min' or 'max', not {self.mode!r}. Give one of these."
            raise ValueError(msg)
        self._values: dict[str, float] = {}
        self._result: tuple[int, float] | None = None
        self._saved: dict[int, float] = {}  # the values by step

    def setup(self, trainer: Trainer) -> None:
        trainer.checkpoint.follows_validation = True

    def kept(self) -> set[str]:
        known = [name for name in self._names if name in self._values]
        known.sort(key=self._values.__getitem__, reverse=self.mode == "max")
        return {*known[: self.n]}

    def on_fit_start(self, trainer: Trainer, train_dataloader: Any, val_dataloader: Any, loop: Any) -> None:
        if not loop.eval_frequency or not as_list(val_dataloader):
            msg = "KeepBestCheckpoints needs a validation. Give val_dataloader, and an eval_frequency above 0."
            raise ValueError(msg)

    def on_validate_end(self, trainer: Trainer, model: Any, loop: Any) -> None:
        if not trainer.is_fitting:
            return
        if self.metric not in loop.metrics:
            names = ", ".join(loop.metrics)
            msg = f"The validation has no metric {self.metric!r}. Give KeepBestCheckpoints one of these: {names}."
            raise ValueError(msg)
        self._result = trainer.global_step, float(loop.metrics[self.metric])

    def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, state_dict)
        step, value = self._result or (None, math.nan)
        for name in trainer.checkpoint.saves.names:
            self._add_saved(trainer, name)
        self._saved[trainer.global_step] = value = value if step == trainer.global_step else math.nan
        state_dict["retention"][type(self).__name__] |= {"values": dict(self._values), "value": value}

    def on_after_save_checkpoint(self, trainer: Trainer, ckpt_path: str) -> None:
        self._add_saved(trainer, ckpt_path)
        super().on_after_save_checkpoint(trainer, ckpt_path)

    def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, state_dict)
        own = state_dict.get("retention", {}).get(type(self).__name__, {})
        self._values = {}
        for name, value in own.get("values", {}).items():
            self._add(name, value)
        if trainer.checkpoint.resumed_from is not None:
            self._add(trainer.checkpoint.resumed_from, own.get("value"))

    def _add_saved(self, trainer: Trainer, path: str) -> None:
        self._add(path, self._saved.get(trainer.checkpoint.step_of(path)))

    def _add(self, path: str, value: Any) -> None:
        if isinstance(value, (int, float)) and not math.isnan(value):
            self._values[path.rpartition("/")[2]] = value
