"""Callbacks that delete older checkpoints: only of this run, only whole ones, and never the one it resumed from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsspec_csx.paths import redacted
from fsspec_csx.trainer import processes, roots
from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    import torch

    from fsspec_csx.trainer.trainer import Trainer


class _Retention(Callback):
    """Knows the checkpoints of a run, also of its parts before a resume, and deletes some of them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._doomed: list[str] = []

    def on_after_save_checkpoint(self, trainer: Trainer, ckpt_path: str) -> None:
        self._names.append(ckpt_path.rpartition("/")[2])
        self.clean(trainer)

    def kept(self) -> set[str]:
        """The names of those that are to stay, the newest apart."""
        raise NotImplementedError

    def clean(self, trainer: Trainer) -> None:
        """Delete what nobody wants to stay, and what could not be deleted before."""
        kept = self.kept() | {*self._names[-1:]}
        self._doomed += [name for name in self._names if name not in kept]
        self._names = [name for name in self._names if name in kept]
        wanted = {name for each in trainer.callbacks if isinstance(each, _Retention) for name in each.kept()}
        self._doomed = [name for name in self._doomed if name in wanted or not _deleted(trainer, name)]

    def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        state_dict.setdefault("retention", {})[type(self).__name__] = {"names": self._names, "doomed": self._doomed}

    def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        own = state_dict.get("retention", {}).get(type(self).__name__)
        path = trainer.checkpoint.resumed_from
        if own is not None and path is not None and trainer.checkpoint.is_own(path):
            self._names = [*own["names"], path.rpartition("/")[2]]
            self._doomed = [*own["doomed"]]


def _deleted(trainer: Trainer, name: str) -> bool:
    """Delete a checkpoint; whether it need not be tried again."""
    path = roots.joined(trainer.checkpoint.root, name)
    if path == trainer.checkpoint.resumed_from:
        return False
    if not trainer.checkpoint.is_own(path):  # whoever wrote the checkpoint that was loaded may name any
        return True
    try:
        roots.remove(path)
    except Exception as error:  # storage that fails now is no reason to lose a training
        trainer.logger.warning("%s was not deleted, which is tried again: %s", redacted(path), error)
        return False
    return True


class KeepNCheckpoints(_Retention):
    """Keeps the newest checkpoints of a run.

    Args:
        n: how many; None for all.

    Raises:
        ValueError: for a number below 1.
    """

    def __init__(self, n: int | None = None) -> None:
        _check_number(n)
        super().__init__()
        self.n = n

    def kept(self) -> set[str]:
        return {*self._names} if self.n is None else {*self._names[-self.n :]}


class KeepBestCheckpoints(_Retention):
    """Keeps the checkpoints of a run after which validation was best, and the newest.

    Args:
        n: how many; None for all.
        metric: of the validation, by the name that the model gives it.
        mode: ``min`` if less is better, or ``max``.

    Raises:
        ValueError: for a number below 1, or another mode.
    """

    def __init__(self, n: int | None = 1, metric: str = "loss", mode: str = "min") -> None:
        _check_number(n)
        if mode not in ("min", "max"):
            msg = f"mode is 'min' or 'max', not {mode!r}. Give one of these."
            raise ValueError(msg)
        super().__init__()
        self.n = n
        self.metric = metric
        self.mode = mode
        self._values: dict[str, float] = {}

    def kept(self) -> set[str]:
        # Of one that was not validated yet nothing is known; only the newest can be so.
        known = [name for name in self._names if name in self._values]
        known.sort(key=self._values.__getitem__, reverse=self.mode == "max")
        return {*known[: self.n]}

    def on_validate_end(self, trainer: Trainer, model: torch.nn.Module, loop: Any) -> None:
        if not trainer.is_fitting:
            return
        trainer.checkpoint.wait(trainer)
        if processes.is_first() and self._names and trainer.checkpoint.saved_at == trainer.global_step:
            self._values[self._names[-1]] = loop.metrics[self.metric]
            self.clean(trainer)

    def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, state_dict)
        state_dict["retention"][type(self).__name__]["values"] = dict(self._values)

    def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, state_dict)
        own = state_dict.get("retention", {}).get(type(self).__name__, {})
        self._values = {name: value for name, value in own.get("values", {}).items() if name in self._names}


def _check_number(n: Any) -> None:
    if n is not None and (type(n) is not int or n < 1):
        msg = f"n is a whole number from 1 on, or None, not {n!r}. Give how many checkpoints to keep."
        raise ValueError(msg)
