"""The order of bytes in numbers."""

from __future__ import annotations

import sys


def check_little_endian(what: str, remedy: str) -> None:
    """Raise a NotImplementedError on a big-endian machine: numbers of the format are not its own."""
    if sys.byteorder != "little":
        msg = f"{what} are little-endian, and this machine is not. {remedy}"
        raise NotImplementedError(msg)
