"""The states of all random generators of a process."""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch

_WORDS = 624  # numbers in the state of the Mersenne Twister
_BUFFER = 4  # numbers in the buffer of Philox

_States = tuple[Any, torch.Tensor, Any]


def seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(number % 2**32)


def capture() -> dict[str, Any]:
    """Return the current states, of types that ``load`` reads without running code."""
    states: dict[str, Any] = {"python": state_of(random), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if numpy := sys.modules.get("numpy"):
        states["numpy"] = state_of(numpy.random)
    return states


def restore(states: dict[str, Any]) -> None:
    """Restore captured states to the generators that exist now and existed then.

    An invalid state raises a ValueError, LookupError, RuntimeError, TypeError or an error of the generator.
    """
    set_state(random, states["python"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    if "numpy" in states and (numpy := sys.modules.get("numpy")):
        set_state(numpy.random, states["numpy"])


class IsolatedRandomStates:
    """Separate random states for the data, seeded from the current ones.

    The data's random numbers do not depend on other draws, such as dropout, and can be drawn again.
    """

    def __init__(self) -> None:
        self._states = (
            random.Random(random.getrandbits(64)).getstate(),
            torch.Generator().manual_seed(int(torch.randint(2**62, ()))).get_state(),
            numpy.random.RandomState(numpy.random.randint(2**31)).get_state()
            if (numpy := sys.modules.get("numpy"))
            else None,
        )

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Draw all random numbers within the block from these states."""
        outside = _current()
        _set(self._states)
        try:
            yield
        finally:
            self._states = _current()
            _set(outside)


def _current() -> _States:
    numpy = sys.modules.get("numpy")
    return random.getstate(), torch.get_rng_state(), numpy.random.get_state() if numpy else None


def _set(states: _States) -> None:
    python, own, numbers = states
    random.setstate(python)
    torch.set_rng_state(own)
    if numbers is not None:
        sys.modules["numpy"].random.set_state(numbers)


def _check(holds: bool) -> None:
    if not holds:
        msg = "a random generator has no such state"
        raise ValueError(msg)


def state_of(generator: Any) -> Any:
    """Return the state of a generator, or of the module ``random`` or ``numpy.random``; for types see ``capture``."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if hasattr(generator, "getstate"):
        version, state, gauss = generator.getstate()
        return [version, torch.tensor(state, dtype=torch.int64), gauss]
    state = generator.get_state(legacy=False) if hasattr(generator, "get_state") else generator.bit_generator.state
    return json.dumps(state, default=lambda array: array.tolist())  # its integers may exceed 64 bits


def set_state(generator: Any, state: Any) -> None:
    """Restore the state of one generator; for an invalid one see ``restore``."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif hasattr(generator, "setstate"):
        version, numbers, gauss = state
        _check(gauss is None or type(gauss) is float)
        generator.setstate((version, tuple(numbers.tolist()), gauss))
    else:
        decoded = json.loads(state)
        # numpy does not check these values, and would read other memory.
        _check(0 <= decoded["state"].get("pos", 0) <= _WORDS and 0 <= decoded.get("buffer_pos", 0) <= _BUFFER)
        if hasattr(generator, "set_state"):
            generator.set_state(decoded)
        else:
            generator.bit_generator.state = decoded
