"""What ``cszoo`` prints: for people, or as JSON."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from fsspec_csx.redaction import without_password

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class OutputClosedError(Exception):
    """Nobody reads standard output any more."""


def emit(options: argparse.Namespace, data: Any, lines: Iterable[str]) -> None:
    """Print a result: the data with ``--json``, else the lines."""
    if options.json:
        options.emitted = True
        text = json.dumps(_plain(data), ensure_ascii=False, allow_nan=False)
        _print("".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text))
    else:
        for line in lines:
            _print(printable(without_password(line)))


def emit_data(options: argparse.Namespace, data: Any) -> None:
    """Print a result if it is printed as JSON."""
    if options.json:
        emit(options, data, ())


def emit_lines(options: argparse.Namespace, lines: Iterable[str]) -> None:
    """Print the lines of a result, unless it is printed as JSON."""
    if not options.json:
        emit(options, None, lines)


def say(options: argparse.Namespace, text: str) -> None:
    """Print a status message, unless the command is to be quiet or prints JSON."""
    if not options.quiet and not options.json:
        _print(printable(without_password(text)))


def flush() -> None:
    """Write out what standard output holds.

    Raises:
        OutputClosedError: if nobody reads it any more.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise OutputClosedError from error


def _print(line: str) -> None:
    try:
        print(line)
    except BrokenPipeError as error:
        raise OutputClosedError from error


def printable(text: str) -> str:
    """A text with escapes for what is no printable character, which a terminal might take for an order."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def table(rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows as lines, their columns below each other.

    Args:
        rows: the texts of the cells.
        right: the columns that end below each other, such as those of numbers.
    """
    rows, right = [*rows], {*right}
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
    """A size for people: ``1.5 GiB``."""
    value, unit = float(size), 0
    while value >= 1023.95 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} B" if not unit else f"{value:.1f} {_UNITS[unit]}"


def _plain(value: Any) -> Any:
    """What JSON can hold of a value: NaN is text, times are in ISO 8601, and URLs have no passwords."""
    if isinstance(value, dict):
        return {without_password(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return without_password(str(value))
