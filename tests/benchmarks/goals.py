"""Goals: what ours is meant to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from report import OPERATIONS, Report

_RIVALS = ("s3torchconnector", "obstore", "crt", "boto3")
Place = tuple[str, str, str]


@dataclass(frozen=True)
class Goal:
    """Something to reach in each place.

    Attributes:
        text: in words.
        value: what was reached in a place (server, case, operation); None if it is not known.
        met: whether that is enough.
    """

    text: str
    value: Callable[[Report, Place], float | None]
    met: Callable[[float], bool]


def _least_faster(report: Report, place: Place) -> float | None:
    return min(_known(report.faster(*place, rival) for rival in _RIVALS), default=None)


def _most_cpu(report: Report, place: Place) -> float | None:
    return max(_known(report.cpu(*place, rival) for rival in ("s3fs", *_RIVALS)), default=None)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


GOALS = (
    Goal("at least 5 times as fast as s3fs", lambda report, at: report.faster(*at, "s3fs"), lambda x: x >= 5),
    Goal("at least 1.3 times as fast as any of " + ", ".join(_RIVALS), _least_faster, lambda x: x >= 1.3),
    Goal(
        "at least 0.85 of the speed of sockets", lambda report, at: report.faster(*at, "sockets"), lambda x: x >= 0.85
    ),
    Goal("at most 0.7 of the CPU seconds of any of s3fs, " + ", ".join(_RIVALS), _most_cpu, lambda x: x <= 0.7),
    Goal("at most 64 MiB of extra memory", lambda report, at: report.row(*at, "ours").extra_mib, lambda x: x <= 64),
)


def as_text(report: Report) -> str:
    """Each goal with what was reached in each place."""
    lines = []
    for goal in GOALS:
        lines.append(f"goal: {goal.text}")
        for server in report.servers:
            found = []
            for case in report.cases:
                for operation in OPERATIONS:
                    value = goal.value(report, (server, case, operation))
                    if value is not None:
                        found.append(f"{case} {operation} {value:.2f} {'met' if goal.met(value) else 'MISSED'}")
            lines.append(f"  {server}: {', '.join(found) or 'not measured'}")
    return "\n".join(lines)
