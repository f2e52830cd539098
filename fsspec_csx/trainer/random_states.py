"""The states of all random number generators that a training may draw from."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch

_WORDS = 624  # of the Mersenne Twister


def generators_of(dataloader: Any) -> list[torch.Generator]:
    """The generators of a data loader's own, each once."""
    found: list[torch.Generator] = []
    holders = [dataloader, getattr(dataloader, "sampler", None), getattr(dataloader, "batch_sampler", None)]
    holders.append(getattr(holders[-1], "sampler", None))
    for holder in holders:
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not each for each in found):
            found.append(generator)
    return found


def seed(number: int) -> None:
    """Seed all generators."""
    torch.manual_seed(number)
    random.seed(number)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(number % 2**32)


def taken(generators: Iterable[torch.Generator] = ()) -> dict[str, Any]:
    """The states now, of values that ``load`` reads without running code.

    Args:
        generators: further ones of torch.
    """
    version, state, gauss = random.getstate()
    states: dict[str, Any] = {
        "python": [version, torch.tensor(state, dtype=torch.int64), gauss],
        "torch": torch.get_rng_state(),
        "generators": [each.get_state() for each in generators],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if numpy := sys.modules.get("numpy"):
        kind, keys, position, has_gauss, cached = numpy.random.get_state()
        states["numpy"] = [kind, torch.from_numpy(keys.astype("int64")), position, has_gauss, cached]
    return states


def restore(states: dict[str, Any], generators: Iterable[torch.Generator] = ()) -> None:
    """Put back what was taken; what is not there now, or was not then, is left alone.

    Raises:
        ValueError: if a state is none; LookupError, RuntimeError, TypeError or another error of theirs, likewise.
    """
    version, state, gauss = states["python"]
    _check(gauss is None or type(gauss) is float)
    random.setstate((version, tuple(state.tolist()), gauss))
    torch.set_rng_state(states["torch"])
    for generator, own in zip(generators, states["generators"], strict=False):
        generator.set_state(own)
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    if "numpy" in states and (numpy := sys.modules.get("numpy")):
        kind, keys, position, has_gauss, cached = states["numpy"]
        # It believes these, and would draw from elsewhere in memory.
        _check(type(position) is int and 0 <= position <= _WORDS and has_gauss in (0, 1) and type(cached) is float)
        _check(keys.dtype == torch.int64 and len(keys) == _WORDS and keys.min() >= 0 and keys.max() < 2**32)
        numpy.random.set_state((kind, keys.numpy().astype("uint32"), position, has_gauss, cached))


def _check(holds: bool | torch.Tensor) -> None:
    if not holds:
        msg = "a random generator has no such state"
        raise ValueError(msg)
