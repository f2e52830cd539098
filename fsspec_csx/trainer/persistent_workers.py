"""Workers of a data loader that live on from pass to pass (``persistent_workers=True``)."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

_STEP = 0x9E3779B97F4A7C15  # odd, so that no two passes of a worker have the same seed


def are_persistent(dataloader: Any) -> bool:
    """Whether the workers of a data loader live on, and it has no state of its own."""
    return (
        isinstance(dataloader, DataLoader)
        and not hasattr(dataloader, "load_state_dict")
        and dataloader.num_workers > 0
        and dataloader.persistent_workers
    )


def seed_each_epoch(dataloader: DataLoader[Any]) -> EpochSeeds:
    """Let the workers, new ones, draw in each pass from seeds of its own, so that a pass can be drawn again alone."""
    before = dataloader.worker_init_fn
    seeds = EpochSeeds(before.before if isinstance(before, EpochSeeds) else before)
    dataloader.worker_init_fn = seeds
    dataloader._iterator = None
    return seeds


class EpochSeeds:
    """A ``worker_init_fn`` by which a worker seeds its random generators at the beginning of each pass but the first.

    torch makes a fetcher at the beginning of each, and calls nothing else there.

    Attributes:
        before: the function that was there before.
        second: the number of the pass that follows the first one of the workers.
    """

    def __init__(self, before: Any) -> None:
        self.before = before
        self.second = 1

    def __call__(self, worker_id: int) -> None:
        """Called by torch in each worker."""
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
