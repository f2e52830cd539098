"""Callbacks that load or save only some states of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Any

from fsspec_csx.checkpoint.api import load, save
from fsspec_csx.errors import MissingEntryError
from fsspec_csx.trainer import checkpoint_root, state_validation
from fsspec_csx.trainer.callback import Callback

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer


class LoadCheckpointStates(Callback):
    """Loads only some states of a checkpoint.

    Args:
        load_checkpoint_states: their keys, as a list or separated by commas; "all" for all.
    """

    def __init__(self, load_checkpoint_states: str | Iterable[str] = "all") -> None:
        self.states = _keys(load_checkpoint_states)

    def preprocess_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        for key in state_dict.keys() - chosen(self.states, state_dict):
            del state_dict[key]


@dataclass(eq=False, repr=False)
class SaveCheckpointState(Callback):
    """Saves some states of every k-th checkpoint, and of the last, to a separate file that is never deleted.

    Args:
        k: the number of checkpoints between two files.
        checkpoint_states: the keys of the states, as a list or separated by commas; "all" for all.
        checkpoint_name: the name of the file beside the checkpoint, with ``{checkpoint_states}`` and ``{ckpt_name}``.

    Raises:
        ValueError: for an invalid number or name.
    """

    k: int
    checkpoint_states: str | Iterable[str] = "model"
    checkpoint_name: str = "{checkpoint_states}_{ckpt_name}"

    def __post_init__(self) -> None:
        if type(self.k) is not int or self.k < 1:
            msg = f"k must be an integer of at least 1, not {self.k!r}. Give the checkpoints for each file."
            raise ValueError(msg)
        fields = {name for _, name, _, _ in Formatter().parse(self.checkpoint_name) if name is not None}
        if fields != {"checkpoint_states", "ckpt_name"}:
            msg = f"{self.checkpoint_name!r} must have {{checkpoint_states}} and {{ckpt_name}}. Add what is missing."
            raise ValueError(msg)
        self.states = _keys(self.checkpoint_states)
        self._count = 0
        self._due: set[int] = set()  # steps; a checkpoint may be uploaded after the next one was saved

    def on_save_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        self._count += 1
        if self._count % self.k == 0 or trainer.is_last_step:
            self._due.add(trainer.global_step)
        state_dict["saved_checkpoints"] = self._count

    def postprocess_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        chosen(self.states, state_dict)  # a wrong name fails at the first checkpoint, not at the k-th

    def on_load_checkpoint(self, trainer: Trainer, state_dict: dict[str, Any]) -> None:
        if "saved_checkpoints" in state_dict:
            self._count = state_validation.to_count(state_dict["saved_checkpoints"])
            if self._count % self.k == 0:  # the loaded checkpoint may be uploaded only now
                self._due.add(trainer.global_step)

    def on_after_save_checkpoint(self, trainer: Trainer, ckpt_path: str) -> None:
        if trainer.checkpoint.step_of(ckpt_path) not in self._due:
            return
        folder, _, name = ckpt_path.rpartition("/")
        states = "_".join(self.states or ["all"])
        own = checkpoint_root.join(folder, self.checkpoint_name.format(checkpoint_states=states, ckpt_name=name))
        save(load(ckpt_path, keys=self.states, map_location="cpu"), own, format=trainer.checkpoint.format)


def _keys(states: str | Iterable[str]) -> list[str] | None:
    if isinstance(states, str):
        return None if states.lower() == "all" else [each.strip() for each in states.split(",")]
    return [*states]


def chosen(states: list[str] | None, held: Iterable[str]) -> set[str]:
    """Return the chosen states of a checkpoint, all for None; raise a MissingEntryError if it lacks one."""
    if states is None:
        return {*held}
    held = [*held]
    if unknown := [each for each in states if each not in held]:
        reason = f"The checkpoint has no state {', '.join(map(repr, unknown))}."
        raise MissingEntryError(reason, f"It has {', '.join(map(repr, held))}.")
    return {*states}
