"""Checkpoint formats: readers and writers that work on any file object."""

from __future__ import annotations

import re
import sys
from importlib import metadata

_OLDEST = (2, 10)


def _check_torch() -> None:
    """Refuse torch before 2.10, whose weights_only lets a file run code: CVE-2026-24747."""
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:  # the import of torch explains more
        return
    found = re.match(r"(\d+)\.(\d+)", version)
    if found and (int(found[1]), int(found[2])) < _OLDEST:
        msg = f"torch {version} is installed, whose weights_only lets a checkpoint run code (CVE-2026-24747)."
        msg += " Install torch 2.10 or later: pip install 'torch>=2.10'."
        raise ImportError(msg)


def check_little_endian(what: str, remedy: str) -> None:
    """Raise a NotImplementedError on a big-endian machine; the format's numbers are little-endian."""
    if sys.byteorder != "little":
        msg = f"{what} are little-endian, and this machine is not. {remedy}"
        raise NotImplementedError(msg)


_check_torch()
