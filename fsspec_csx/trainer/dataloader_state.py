"""DataLoaderState: random generators and counters of a data loader, its sampler, its dataset and its workers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from fsspec_csx.tensors import torch_compat
from fsspec_csx.trainer import random_states

_SAMPLERS = ("loader", "sampler", "batch_sampler", "batch_sampler.sampler")
_DEEPEST = 8
_NUMBERS = (bool, int, float, type(None))
_STEP = 0x9E3779B97F4A7C15  # odd, so that no two passes of a worker have the same seed


class DataLoaderState:
    """The random generators and changing numbers in the attributes of a loader's objects."""

    def __init__(self, dataloader: Any) -> None:
        self._holders = _holders(dataloader)
        self.samplers = [self._holders[path] for path in _SAMPLERS if path in self._holders]
        self._first = {key: value for key, _, _, value in self._attributes() if type(value) in _NUMBERS}

    def capture(self) -> dict[str, Any]:
        """Return the current states, of types that ``load`` reads without running code."""
        states: dict[str, Any] = {}
        for key, _, _, value in self._attributes():
            if _is_generator(value):
                states[key] = random_states.state_of(value)
            elif type(value) in _NUMBERS and value != self._first.get(key, ...):
                states[key] = value
        return states

    def restore(self, states: dict[str, Any]) -> None:
        """Restore captured states to the attributes that still exist; the generator may raise any error for them."""
        for key, holder, name, value in [*self._attributes()]:
            if key not in states:
                continue
            if _is_generator(value):
                random_states.set_state(value, states[key])
            elif type(value) in _NUMBERS and type(states[key]) in _NUMBERS:
                setattr(holder, name, states[key])

    def _attributes(self) -> Iterator[tuple[str, Any, str, Any]]:
        for path, holder in self._holders.items():
            names = {"generator": getattr(holder, "generator", None)}
            if not isinstance(holder, DataLoader):
                names |= getattr(holder, "__dict__", {})
            for name, value in names.items():
                yield f"{path}.{name}", holder, name, value


def _holders(dataloader: Any) -> dict[str, Any]:
    batch_sampler = getattr(dataloader, "batch_sampler", None)
    found = {
        "loader": dataloader,
        "sampler": getattr(dataloader, "sampler", None),
        "batch_sampler": batch_sampler,
        "batch_sampler.sampler": getattr(batch_sampler, "sampler", None),
        "collate_fn": getattr(dataloader, "collate_fn", None),
    }
    dataset = getattr(dataloader, "dataset", None)
    for depth in range(_DEEPEST):  # a Subset, for example, contains another dataset
        found[f"dataset{depth}"] = dataset
        dataset = getattr(dataset, "dataset", None)
    return {path: holder for path, holder in found.items() if holder is not None}


def _is_generator(value: Any) -> bool:
    if isinstance(value, (torch.Generator, random.Random)):
        return True
    numpy: Any = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.random.Generator, numpy.random.RandomState))


def seed_each_epoch(dataloader: Any) -> EpochSeeds | None:
    """Start new workers that are seeded in each epoch, so that a single epoch can be drawn again.

    Returns None for a loader without persistent workers, or with its own state.
    """
    if not isinstance(dataloader, DataLoader) or hasattr(dataloader, "load_state_dict"):
        return None
    if not dataloader.num_workers or not dataloader.persistent_workers:
        return None
    before = dataloader.worker_init_fn
    seeds = EpochSeeds(before.before if isinstance(before, EpochSeeds) else before)
    dataloader.worker_init_fn = seeds
    torch_compat.forget_workers(dataloader)
    return seeds


class EpochSeeds:
    """A ``worker_init_fn`` that seeds the worker's random generators at the beginning of each epoch but the first.

    It hooks into the creation of the fetcher, the only call that torch makes at the beginning of each epoch.
    """

    def __init__(self, before: Any) -> None:
        self.before = before
        self.second = 1  # the number of the workers' second epoch

    def __call__(self, worker_id: int) -> None:
        from torch.utils.data import _DatasetKind

        if self.before is not None:
            self.before(worker_id)
        info = get_worker_info()
        assert info is not None
        create: Any = _DatasetKind.create_fetcher
        passes = 0

        def seeded(*args: Any, **kwargs: Any) -> Any:
            nonlocal passes
            if passes:
                random_states.seed((info.seed + (self.second + passes - 1) * _STEP) % 2**63)
            passes += 1
            return create(*args, **kwargs)

        _DatasetKind.create_fetcher = staticmethod(seeded)  # type: ignore[method-assign]
