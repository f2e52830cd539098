"""Rows: what was measured of each peer, as text or as JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

BASE = "ours"
_HEAD = ("case", "operation", "peer", "seconds", "GB/s", "to ours", "CPU s/GB", "CPU to ours", "extra MiB", "verified")
_TEXT_COLUMNS = 3


@dataclass(frozen=True)
class Row:
    """One operation of one peer.

    Attributes:
        seconds: the median of the runs, as are ``cpu_seconds_per_gb`` and ``extra_mib``.
        verified: "equal" in every bit, "received" by a server that does not store it, or "" if there are no numbers.
        note: why there are no numbers, if there are none.
        failed: whether that is an error.
    """

    case: str
    operation: str
    peer: str
    seconds: float | None = None
    gb_per_second: float | None = None
    cpu_seconds_per_gb: float | None = None
    extra_mib: float | None = None
    verified: str = ""
    note: str = ""
    failed: bool = False


def median(values: Sequence[float | None]) -> float | None:
    """Of values that are known, or None."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def as_json(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """The facts of the run, and the rows with their ratios to ours."""
    listed = []
    for row in rows:
        base = _base(row, rows)
        ratios = {
            "seconds_to_ours": _ratio(row.seconds, base.seconds if base else None),
            "cpu_to_ours": _ratio(row.cpu_seconds_per_gb, base.cpu_seconds_per_gb if base else None),
        }
        listed.append({**asdict(row), **ratios})
    return json.dumps({**facts, "rows": listed}, indent=2)


def as_text(facts: dict[str, Any], rows: Sequence[Row]) -> str:
    """A table for people."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {said}" for key, said in value.items())]
        else:
            lines.append(f"{name}: {value}")
    cells = [_HEAD, *(_cells(row, _base(row, rows)) for row in rows)]
    columns = [
        [line[at] for line in cells if at < _TEXT_COLUMNS or len(line) == len(_HEAD)] for at in range(len(_HEAD))
    ]
    widths = [max(map(len, column)) for column in columns]
    previous = None
    for line in cells:
        if previous is not None and line[:2] != previous:
            lines.append("")
        previous = line[:2]
        if len(line) < len(_HEAD):  # the note takes the place of all numbers
            padded = [*(text.ljust(width) for text, width in zip(line[:-1], widths, strict=False)), line[-1]]
        else:
            padded = [
                text.ljust(width) if column < _TEXT_COLUMNS else text.rjust(width)
                for column, (text, width) in enumerate(zip(line, widths, strict=True))
            ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _cells(row: Row, base: Row | None) -> tuple[str, ...]:
    place = (row.case, row.operation, row.peer)
    if row.note:
        return (*place, row.note)
    return (
        *place,
        _number(row.seconds, 3),
        _number(row.gb_per_second, 2),
        _compared(_ratio(row.seconds, base.seconds if base else None), row, "slower", "faster"),
        _number(row.cpu_seconds_per_gb, 2),
        _compared(_ratio(row.cpu_seconds_per_gb, base.cpu_seconds_per_gb if base else None), row, "more", "less"),
        _number(row.extra_mib, 0),
        row.verified,
    )


def _base(row: Row, rows: Sequence[Row]) -> Row | None:
    """Our row of the same operation."""
    for other in rows:
        if (other.case, other.operation, other.peer) == (row.case, row.operation, BASE):
            return other
    return None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _compared(ratio: float | None, row: Row, above: str, below: str) -> str:
    if row.peer == BASE or not ratio:
        return "-"
    return f"{ratio:.1f}x {above}" if ratio >= 1 else f"{1 / ratio:.1f}x {below}"


def _number(value: float | None, digits: int) -> str:
    return "unknown" if value is None else f"{value:.{digits}f}"
