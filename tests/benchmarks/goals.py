"""The goals for the speed of this package, and whether it reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from report import Place, Report

_PEERS = ("s3fs", "s3torchconnector", "obstore", "boto3", "crt")
_FIXED = ("ours-32", "ours-64", "ours-128")
_OF_FILES = ("s3fs-files", "obstore-files", "boto3-files")
_OF_SHARDS = ("sharded-s3fs", "sharded-s3torchconnector")
_NEAR, _TLS, _FAR = ("nginx",), ("nginx-tls",), ("far-25", "far-85")


@dataclass(frozen=True)
class Goal:
    """Something to reach.

    Attributes:
        text: in words.
        servers: where.
        cases: for which.
        value: what was reached in a place; None if it is not known.
        limit: the least that is enough, or the most.
        most: whether it is the most.
        operations: for which; all if empty.
    """

    text: str
    servers: tuple[str, ...]
    cases: tuple[str, ...]
    value: Callable[[Report, Place], float | None]
    limit: float
    most: bool = False
    operations: tuple[str, ...] = ()

    def met(self, value: float) -> bool:
        """Whether a value is enough."""
        return value <= self.limit if self.most else value >= self.limit


class Verdict(NamedTuple):
    """A goal on a server: whether all of it was met, and what was reached, operation by operation."""

    goal: str
    server: str
    met: bool
    reached: list[tuple[str, bool]]


def _than(*rivals: str, ours: str = "") -> Callable[[Report, Place], float | None]:
    """How many times as fast ours is as the fastest of them."""
    return lambda report, place: min(_known(report.faster(place, rival, ours) for rival in rivals), default=None)


def _extra(report: Report, place: Place) -> float | None:
    return max(_known(report.row(*place, peer).extra_mib for peer in ("ours", "ours-open")), default=None)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


_LARGE, _SMALL, _ALL = ("large",), ("small",), ("large", "small")
_BEST, _OPEN = _than(*_PEERS), _than("ours", ours="ours-open")
GOALS = (
    Goal("0.9 x sockets that compute the same checksums", _NEAR, _LARGE, _than("sockets-checked"), 0.9),
    Goal("0.9 x ssl sockets", _TLS, _LARGE, _than("sockets"), 0.9),
    Goal(
        "at most 1.3 x the CPU of ssl sockets",
        _TLS,
        _LARGE,
        lambda report, place: report.cpu(place, "sockets"),
        1.3,
        most=True,
        operations=("load",),
    ),
    Goal("1.8 x s3fs", _TLS, _LARGE, _than("s3fs"), 1.8, operations=("load",)),
    Goal("1.3 x the best peer", (*_TLS, *_FAR), _LARGE, _BEST, 1.3),
    Goal("0.85 x the best fixed number of requests", _FAR, _LARGE, _than(*_FIXED), 0.85),
    Goal("small tensors: 1.2 x the best peer", (*_NEAR, *_FAR), _SMALL, _BEST, 1.2),
    Goal("torch on fsspec.open: 0.8 x save and load", (*_NEAR, *_TLS, *_FAR), _ALL, _OPEN, 0.8),
    Goal("torch on fsspec.open: 1 x the best peer", _FAR, _ALL, _than(*_PEERS, ours="ours-open"), 1),
    Goal("many files: 1 x the best peer", _FAR, ("files",), _than(*_OF_FILES), 1),
    Goal(
        "sharded: 1.3 x the best other storage", (*_NEAR, *_FAR), ("sharded", "sharded-small"), _than(*_OF_SHARDS), 1.3
    ),
    Goal("at most 64 MiB of extra memory", (*_NEAR, *_TLS), _ALL, _extra, 64, most=True),
    Goal("at most 256 MiB of extra memory", _FAR, _ALL, _extra, 256, most=True),
)


def as_text(report: Report) -> str:
    """A line for each goal and server."""
    lines = [
        f"{'met   ' if met else 'MISSED'}  {goal}, {server}: {', '.join(text for text, _ in reached)}"
        for goal, server, met, reached in _verdicts(report)
    ]
    return "\n".join(["Goals:", *(lines or ["none was measured"])])


def as_markdown(report: Report) -> str:
    """A table with a row for each goal and server; what missed it is bold."""
    lines = ["| Goal | Server | | Reached |", "|---|---|---|---|"]
    for goal, server, met, reached in _verdicts(report):
        found = ", ".join(text if enough else f"**{text}**" for text, enough in reached)
        lines.append(f"| {goal} | {server} | {'met' if met else '**MISSED**'} | {found} |")
    return "\n".join(lines)


def _verdicts(report: Report) -> Iterator[Verdict]:
    for goal in GOALS:
        for server in goal.servers:
            if reached := list(_reached(goal, server, report)):
                yield Verdict(goal.text, server, all(enough for _, enough in reached), reached)


def _reached(goal: Goal, server: str, report: Report) -> Iterator[tuple[str, bool]]:
    for place in report.places:
        at, case, operation = place
        if at != server or case not in goal.cases or operation not in (goal.operations or (operation,)):
            continue
        if (value := goal.value(report, place)) is not None:
            of = "" if len(goal.cases) == 1 else f" {report.cases[case][0]}"
            yield f"{operation}{of} {value:.{0 if goal.limit > 10 else 2}f}", goal.met(value)
