"""Schedules: which faults happen to an operation, and when; the same seed gives the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from kinds import KINDS, Keys
from proxy import Fault, Request

ALWAYS = 10**9
_MOST = 5
_LASTING_SHARE = 0.12


@dataclass(frozen=True)
class Planned:
    """A fault that is to happen.

    Attributes:
        kind: its name.
        skip: how many requests that it could happen to pass before.
        times: how many it happens to.
        seed: of its details.
    """

    kind: str
    skip: int
    times: int
    seed: int

    def __str__(self) -> str:
        times = "always" if self.times == ALWAYS else f"{self.times} times" if self.times > 1 else "once"
        return f"{self.kind}: {times}, after {self.skip}"

    def made(self, keys: Keys) -> Fault:
        """The rule for the proxy."""
        kind = KINDS[self.kind]
        fault = kind.made(Random(self.seed), keys)
        fault.when = _both(fault.when, kind.fits)
        fault.skip, fault.times = self.skip, self.times
        return fault


def _both(one: Callable[[Request], bool], other: Callable[[Request], bool]) -> Callable[[Request], bool]:
    return lambda request: one(request) and other(request)


def possible(requests: Sequence[Request], *, tls: bool = False) -> dict[str, int]:
    """For each kind, how many of the requests that an operation makes, over TLS or not, it could happen to."""
    return {name: sum(map(kind.fits, requests)) if tls or not kind.tls else 0 for name, kind in KINDS.items()}


def schedule(seed: int | str, fitting: Mapping[str, int]) -> tuple[Planned, ...]:
    """A random schedule of one to five faults.

    Args:
        seed: of all that is random.
        fitting: for each kind, how many requests there are that it could happen to.
    """
    random = Random(seed)
    names = sorted(name for name, count in fitting.items() if count)
    return tuple(one(random.choice(names), fitting, random) for _ in range(random.randint(1, _MOST)))


def one(name: str, fitting: Mapping[str, int], random: Random, *, always: bool | None = None) -> Planned:
    """A random fault of a kind, which happens once or always, as given, or at random."""
    kind = KINDS[name]
    lasting = kind.lasting or (random.random() < _LASTING_SHARE if always is None else always)
    times = ALWAYS if lasting else random.randint(1, kind.burst)
    return Planned(name, random.randrange(fitting[name]), times, random.randrange(2**32))
