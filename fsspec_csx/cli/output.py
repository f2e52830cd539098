"""The output of ``cszoo``: text or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from fsspec_csx.redaction import without_password

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class OutputClosedError(Exception):
    """The reader of standard output has closed it."""


def emit(options: argparse.Namespace, data: Any, lines: Iterable[str] = ()) -> None:
    """Print a result: the data with ``--json``, otherwise the lines."""
    if options.json:
        options.emitted = True
        _print(json.dumps(_plain(data), allow_nan=False).replace("\x7f", "\\u007f"))  # the delete character is ASCII
    else:
        for line in lines:
            _print(printable(line))


def emit_lines(options: argparse.Namespace, lines: Iterable[str]) -> None:
    """Print the lines of a result, unless ``--json`` is given."""
    if not options.json:
        emit(options, None, lines)


def print_status(options: argparse.Namespace, text: str) -> None:
    """Print a status message, unless ``--quiet`` or ``--json`` is given."""
    if not options.quiet and not options.json:
        _print(printable(text))


def flush() -> None:
    """Flush standard output; an OutputClosedError if its reader has closed it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise OutputClosedError from error


def _print(line: str) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # another object may stand in for the stream
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding))
    except BrokenPipeError as error:
        raise OutputClosedError from error


def printable(text: str) -> str:
    """Return a text without passwords, and with control characters escaped."""
    text = without_password(text)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def display_name(name: str) -> str:
    """Return the name of an entry, which may hold any characters, for a line of text."""
    return name if name and name.isprintable() else repr(name)


def pluralize(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 file``, ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Format rows as aligned lines; ``right`` are the columns to align on the right, such as numbers."""
    rows, right = [[printable(cell) for cell in row] for row in rows], {*right}
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def in_bytes(size: int) -> str:
    """Format a size in bytes: ``1.5 GiB``."""
    value, unit = float(size), 0
    while value >= 1023.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} B" if not unit else f"{value:.1f} {_UNITS[unit]}"


def _plain(value: Any) -> Any:
    """Convert a value for JSON: results to dicts, NaN to text, times to ISO 8601; passwords in URLs are removed."""
    if isinstance(value, dict):
        return {without_password(str(key)): _plain(each) for key, each in value.items()}
    if dataclasses.is_dataclass(value):
        # Fields without a repr, such as a filesystem, are not part of a result.
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value) if each.repr}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return without_password(str(value))
