"""Persistent workers of a data loader (``persistent_workers=True``), seeded anew in each epoch."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from fsspec_csx.tensors import torch_compat

_STEP = 0x9E3779B97F4A7C15  # odd, so that no two passes of a worker have the same seed


def seed_each_epoch(dataloader: Any) -> EpochSeeds | None:
    """Start new workers that are seeded in each epoch, so that one epoch alone can be drawn again.

    None for a loader without persistent workers, or with a state of its own.
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

    torch makes a fetcher at the beginning of each epoch, and calls nothing else there.

    Attributes:
        before: the loader's own ``worker_init_fn``.
        second: the number of the workers' second epoch.
    """

    def __init__(self, before: Any) -> None:
        self.before = before
        self.second = 1

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
                _seed((info.seed + (self.second + passes - 1) * _STEP) % 2**63)
            passes += 1
            return create(*args, **kwargs)

        _DatasetKind.create_fetcher = staticmethod(seeded)  # type: ignore[method-assign]


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed([number & 0xFFFFFFFF, number >> 32])
