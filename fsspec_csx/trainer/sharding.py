"""Sharded checkpoints of a training: each process saves and loads its own parts of the model and the optimizer.

They are folders of ``torch.distributed.checkpoint``. Each tensor in nested dicts is an item. Any other value below a
key is one item, so that it is restored exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from fsspec_csx import distributed
from fsspec_csx.checkpoint import api as checkpoint_api
from fsspec_csx.distributed.async_save import background_group
from fsspec_csx.distributed.paths import folder_at
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.full_state_dict import ManifestEntry, ShardedStateDict, replaced
from fsspec_csx.formats.dcp.layout import MANIFEST
from fsspec_csx.tensors import names
from fsspec_csx.trainer import processes

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_Path = tuple[str, ...]


def save(trainer: Trainer, state: dict[str, Any], path: str, *, background: bool) -> Future[None] | None:
    """Save the result of ``training_state.collect`` with ``sharded=True``; all processes must call it.

    Each process writes its shards and replicated tensors; the first one also writes the rest. If one process fails, all
    raise its error. With ``background`` it copies the state, and returns the save.
    """
    parameters = processes.unwrap(trainer.model).named_parameters(remove_duplicate=False)
    alike = {("model", name) for name, _ in parameters}
    paths: dict[str, _Path] = {}
    items: dict[str, Any] = {}
    for keys, value in _items(state):
        replicated = isinstance(value, torch.Tensor) and (keys in alike or keys[:2] == ("optimizer", "state"))
        if processes.is_first() or processes.is_sharded(value) or replicated:
            name = ".".join(keys)
            paths[name], items[name] = keys, value
    if background:
        return distributed.async_save(items, path, planner=_Planner(paths))
    group = background_group(None)  # a gloo group, as plans and results need no GPU
    distributed.save(items, path, planner=_Planner(paths), process_group=group)
    return None


class _Planner(DefaultSavePlanner):
    """Saves items unchanged; torch's planner would flatten nested values and lose empty containers."""

    def __init__(self, paths: dict[str, _Path]) -> None:
        super().__init__()
        self._paths = paths

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        super().set_up_planner({}, storage_meta, is_coordinator)
        self.state_dict, self.mappings = state_dict, {**self._paths}


def load(trainer: Trainer, path: str, wanted: Callable[[str], bool] | None = None) -> Any:
    """Load the wanted entries of a checkpoint, or all for None.

    If a tensor is sharded in the checkpoint and in the model, only this process's part is loaded. Raises a
    CheckpointError if the checkpoint is damaged.
    """
    like = _sharded_here(trainer)
    folder = folder_at(path, None)
    if not like or not processes.broadcast(processes.is_first() and folder.exists(MANIFEST)):
        return checkpoint_api.load(path, keys=wanted, map_location="cpu")
    sharded = ShardedStateDict(folder, manifest.read(folder))
    state = sharded.nested
    if wanted is not None:
        state = names.select(state, names.Choice(state, wanted, folder.name))
    items: dict[str, Any] = {}
    for name, entry in names.walk(state):
        if isinstance(entry, ManifestEntry):
            items[entry.name] = sharded.empty(entry) if entry.tensor else None
            own = like.get(_owner(name))
            if own is not None and entry.tensor and entry.tensor.size == own.shape:
                items[entry.name] = torch.empty_like(own, dtype=entry.tensor.properties.dtype, device="cpu")
    distributed.load(items, path)
    return replaced(state, items)


def _owner(name: str) -> str:
    """Return the name of the model's tensor, or of the parameter's optimizer state, to which an entry belongs."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["optimizer", "state"] else name


def _sharded_here(trainer: Trainer) -> dict[str, torch.Tensor]:
    found = {f"model.{name}": value for name, value in processes.unwrap(trainer.model).state_dict().items()}
    groups = trainer.optimizer.param_groups if trainer.optimizer else []
    parameters = [each for group in groups for each in group["params"]]
    found |= {f"optimizer.state.{number}": each for number, each in enumerate(parameters)}
    return {name: value for name, value in found.items() if processes.is_sharded(value)}


def _items(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    if not path or _holds_tensors(value):
        for key, each in value.items():
            yield from _items(each, (*path, str(key)))
    else:
        yield path, value


def _holds_tensors(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(each, torch.Tensor) or _holds_tensors(each) for each in value.values())
