"""Goals: what ours is meant to reach, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from report import Place, Report

_RIVALS = ("s3torchconnector", "obstore", "crt", "boto3")
_FIXED = ("ours-16", "ours-32", "ours-64", "ours-128")


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


def _least_faster(*rivals: str) -> Callable[[Report, Place], float | None]:
    return lambda report, place: min(_known(report.faster(*place, rival) for rival in rivals), default=None)


def _most_cpu(report: Report, place: Place) -> float | None:
    return max(_known(report.cpu(*place, rival) for rival in ("s3fs", *_RIVALS)), default=None)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


GOALS = (
    Goal("at least 5 times as fast as s3fs", _least_faster("s3fs"), lambda x: x >= 5),
    Goal("at least 1.3 times as fast as any of " + ", ".join(_RIVALS), _least_faster(*_RIVALS), lambda x: x >= 1.3),
    Goal("at least 0.85 of the speed of sockets", _least_faster("sockets"), lambda x: x >= 0.85),
    Goal("at least 0.9 of the speed of sockets-checked", _least_faster("sockets-checked"), lambda x: x >= 0.9),
    Goal("at least 0.85 of the speed of any fixed number of requests", _least_faster(*_FIXED), lambda x: x >= 0.85),
    Goal("at most 0.7 of the CPU seconds of any of s3fs, " + ", ".join(_RIVALS), _most_cpu, lambda x: x <= 0.7),
    Goal("at most 64 MiB of extra memory", lambda report, at: report.row(*at, "ours").extra_mib, lambda x: x <= 64),
    Goal(
        "sharded: at least as fast as any other storage",
        _least_faster("sharded-s3fs", "sharded-s3torchconnector"),
        lambda x: x >= 1,
    ),
)


def as_text(report: Report) -> str:
    """Each goal with what was reached in each place."""
    lines = []
    for goal in GOALS:
        lines.append(f"goal: {goal.text}")
        found: dict[str, list[str]] = {}
        for place, verdict in _reached(goal, report):
            found.setdefault(place[0], []).append(f"{place[1]} {place[2]} {verdict}")
        lines += [f"  {server}: {', '.join(each)}" for server, each in found.items()] or ["  not measured"]
    return "\n".join(lines)


def as_markdown(report: Report) -> str:
    """The same as a table: a row for each goal and server."""
    lines = ["| Goal | Server | Reached |", "|---|---|---|"]
    for goal in GOALS:
        found: dict[str, list[str]] = {}
        for place, verdict in _reached(goal, report):
            found.setdefault(place[0], []).append(f"{place[2]} {report.cases[place[1]][0]}: {verdict}")
        lines += [f"| {goal.text} | {server} | {'; '.join(each)} |" for server, each in found.items()]
    return "\n".join(lines)


def _reached(goal: Goal, report: Report) -> Iterator[tuple[Place, str]]:
    for place in report.places:
        value = goal.value(report, place)
        if value is not None:
            yield place, f"{value:.2f} {'met' if goal.met(value) else 'MISSED'}"
