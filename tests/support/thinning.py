"""Cases of a test: each run takes a few of them, and CI takes all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """The cases, of which all but those that are kept are marked as slow; a tuple is a case of several values."""
    found = list(cases)
    assert all(each in found for each in kept), kept
    return [each if each in kept else pytest.param(*_values(each), marks=pytest.mark.slow) for each in found]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
