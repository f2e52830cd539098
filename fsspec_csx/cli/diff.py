"""``cszoo checkpoint diff``."""

from __future__ import annotations

from fsspec_csx.cli.verbs import Verbs


def add(verbs: Verbs) -> None:
    """The verb."""
