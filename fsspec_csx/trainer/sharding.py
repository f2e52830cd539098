"""Sharded checkpoints of a training: each process saves and loads its own parts of the model and the optimizer.

They are folders of ``torch.distributed.checkpoint``. Tensors in nested dicts are items of their own; all else below a
key is one item, so that it comes back as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from fsspec_csx import distributed
from fsspec_csx.checkpoint import api as checkpoint_api
from fsspec_csx.distributed.paths import folder_at
from fsspec_csx.formats.dcp import full_state_dict, manifest
from fsspec_csx.formats.dcp.folder import MANIFEST
from fsspec_csx.tensors import names
from fsspec_csx.trainer import processes

if TYPE_CHECKING:
    from fsspec_csx.trainer.trainer import Trainer

_Path = tuple[str, ...]


class ShardedSave:
    """What this process saves of a training: its shards, what all have alike, and, if it is the first, the rest.

    Args:
        trainer: of which the state is.
        state: as ``training_state.collect`` gives it, with sharded tensors.
        copied: whether it stays as it is now, while the training goes on.
    """

    def __init__(self, trainer: Trainer, state: dict[str, Any], *, copied: bool) -> None:
        parameters = processes.unwrap(trainer.model).named_parameters(remove_duplicate=False)
        alike = {("model", name) for name, _ in parameters}
        self._paths: dict[str, _Path] = {}
        self._items: dict[str, Any] = {}
        for path, value in _items(state):
            replicated = isinstance(value, torch.Tensor) and (path in alike or path[:2] == ("optimizer", "state"))
            if processes.is_first() or processes.is_sharded(value) or replicated:
                name = ".".join(path)
                self._paths[name] = path
                self._items[name] = _copied(value) if copied else value

    def write(self, path: str, group: dist.ProcessGroup | None) -> None:
        """Save it, together with all other processes.

        Args:
            path: of the checkpoint.
            group: all processes; nothing else may use it meanwhile.

        Raises:
            Exception: what went wrong in this process, or else in the first that failed.
        """
        distributed.save(self._items, path, planner=_Planner(self._paths), process_group=group)

    def start(self, path: str, group: dist.ProcessGroup) -> Future[None]:
        """Save it in the background; arguments and errors are those of ``write``."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="fsspec_csx sharded save")
        try:
            return thread.submit(self.write, path, group)
        finally:
            thread.shutdown(wait=False)


class _Planner(DefaultSavePlanner):
    """Saves items as they are, where torch's would take nested values apart, and lose empty ones.

    Args:
        paths: the keys that lead to each item.
    """

    def __init__(self, paths: dict[str, _Path]) -> None:
        super().__init__()
        self._paths = paths

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        """Take the items, by their names."""
        super().set_up_planner({}, storage_meta, is_coordinator)
        self.state_dict, self.mappings = state_dict, {**self._paths}


def load(trainer: Trainer, path: str, wanted: Callable[[str], bool] | None = None) -> Any:
    """Load a checkpoint, sharded or not; of tensors that are sharded both there and here, this process's parts alone.

    Args:
        trainer: whose model and optimizer tell what is sharded.
        path: of the checkpoint.
        wanted: whether an entry of this name is loaded; None for all.

    Raises:
        CheckpointError: a ValueError, if it is damaged.
        OSError: what the filesystem raised.
    """
    like = _sharded_here(trainer)
    folder = folder_at(path, None)
    if not like or not processes.broadcast(processes.is_first() and folder.exists(MANIFEST)):
        return checkpoint_api.load(path, keys=wanted, map_location="cpu")
    metadata = manifest.read(folder)
    state = full_state_dict.nested(metadata)
    if wanted is not None:
        state = names.select(state, names.Choice(state, wanted, folder.name))
    items: dict[str, Any] = {}
    for name, entry in names.walk(state):
        if isinstance(entry, full_state_dict.ManifestEntry):
            items[entry.name] = full_state_dict.empty(folder, metadata, entry) if entry.tensor else None
            own = like.get(_owner(name))
            if own is not None and entry.tensor and entry.tensor.size == own.shape:
                items[entry.name] = torch.empty_like(own, dtype=entry.tensor.properties.dtype, device="cpu")
    distributed.load(items, path)
    return full_state_dict.replaced(state, items)


def _owner(name: str) -> str:
    """The name of a tensor of the model, or of the optimizer's state of one parameter, by that of an entry of it."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["optimizer", "state"] else name


def _sharded_here(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The tensors that are sharded over processes, by the names that ``_owner`` tells."""
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
    """Whether there are tensors in nested mappings."""
    if not isinstance(value, Mapping):
        return False
    return any(isinstance(each, torch.Tensor) or _holds_tensors(each) for each in value.values())


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    return copy.deepcopy(value)
