"""A scenario: an operation, the state before it, and the states that it may leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from place import Place

OLD, NEW, BETWEEN = "all is as it was", "all is as it should be", "some is done, and nothing is lost"
"""What may be found; everything else is lost."""


@dataclass(frozen=True)
class Scenario:
    """An operation that is harmed.

    Attributes:
        name: what to call it.
        prepare: puts the former objects there, past the proxy.
        run: does the work, by way of the proxy.
        found: OLD, NEW, BETWEEN, or in other words what lies there now; it is given what ``run`` returned, or None if
            that was refused.
        unseen: kinds of faults that are left out, as nobody can notice them.
        goes_on: whether what is broken off stays, so that the same call goes on with it.
    """

    name: str
    prepare: Callable[[Place], object]
    run: Callable[[Place], Any]
    found: Callable[[Place, Any], str]
    unseen: frozenset[str] = frozenset()
    goes_on: bool = False


UNSEEN = frozenset({"bit flipped on the way down"})
"""Without TLS it is not noticed in a range of an object, for which S3 has no checksum."""


Equal = Callable[[Any, Any], bool]


def is_same(one: Any, other: Any) -> bool:
    """Whether two values are equal."""
    return bool(one == other)


def which(value: Any, old: Any, new: Any, equal: Equal = is_same) -> str:
    """OLD or NEW, or that it is neither."""
    if equal(value, old):
        return OLD
    return NEW if equal(value, new) else f"neither the old nor the new is there: {str(value)[:200]}"


def alone(place: Place, *names: str) -> str:
    """What else there is than these names; empty if nothing."""
    others = sorted(place.names() - set(names))
    return f"there are {others} besides" if others else ""


def read(expected: Any, value: Any, equal: Equal = is_same) -> str:
    """What a read that returned a value, or None if it was refused, comes to."""
    if value is None:
        return OLD
    return NEW if equal(value, expected) else "other data was read than there is"
