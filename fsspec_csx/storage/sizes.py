"""Parses sizes in bytes."""

from __future__ import annotations

import re

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?B|)\s*", re.IGNORECASE)


def bytes_of(size: int | str, name: str) -> int:
    """Return a number of bytes, or parse a text such as ``5GB``; raise a ValueError with ``name`` if it is invalid."""
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    count = int(float(found[1]) * _UNITS.get(found[2].upper() or "B", 0)) if found else size
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        msg = f"{name} is {size!r}, which is not a size. Give a number of bytes, or a text such as '5GB'."
        raise ValueError(msg)
    return count
