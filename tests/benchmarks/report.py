"""Report: everything that was measured, and the medians and ratios that follow from it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from many_files import FILE_OPERATIONS
from peers import PEERS

OPERATIONS = ("save", "load")
Place = tuple[str, str, str]
"""A server, a case and an operation."""


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        number: of the round, in which all peers were measured one after the other.
        seconds: on the wall.
        cpu_seconds: of the client.
        extra_bytes: memory at the peak beyond the state dict; None if unknown.
        requests: that the server answered; None if unknown.
        page_faults: of the client.
        share: the part of the case that was moved, of which all these are.
    """

    server: str
    case: str
    operation: str
    peer: str
    number: int
    seconds: float
    cpu_seconds: float
    extra_bytes: int | None = None
    requests: int | None = None
    page_faults: int = 0
    share: float = 1.0


@dataclass(frozen=True)
class Gap:
    """Why there are no numbers: of a peer on a server; for all cases and operations if these are empty.

    Attributes:
        failed: whether that is an error, and not only something that is missing.
    """

    server: str
    peer: str
    note: str
    case: str = ""
    operation: str = ""
    failed: bool = False


@dataclass
class Report:
    """What a run of the benchmark found.

    Attributes:
        facts: what one has to know to repeat the run.
        cases: what each is, in words, and its size in bytes.
        servers: what each is.
        settings: part size and requests in flight of each peer.
        runs: the measurements.
        gaps: what is missing among them.
    """

    facts: dict[str, Any]
    cases: dict[str, tuple[str, int]]
    servers: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    def as_json(self) -> str:
        """Text that `from_json` reads."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report of which `as_json` made the text."""
        given = json.loads(text)
        given["runs"] = [Run(**run) for run in given["runs"]]
        given["gaps"] = [Gap(**gap) for gap in given["gaps"]]
        return cls(**given)

    @property
    def peers(self) -> list[str]:
        """The requested ones, in the order of ``PEERS``."""
        found = {run.peer for run in self.runs} | {gap.peer for gap in self.gaps}
        return [name for name in PEERS if name in found]

    @property
    def failed(self) -> bool:
        """Whether a peer did not work."""
        return any(gap.failed for gap in self.gaps)

    @property
    def places(self) -> list[Place]:
        """Where anything was measured, or failed, in the order of servers and cases."""
        found = {(run.server, run.case, run.operation) for run in self.runs}
        found |= {(gap.server, gap.case, gap.operation) for gap in self.gaps if gap.case}
        servers, cases = list(self.servers), list(self.cases)
        operations = (*OPERATIONS, "columns", *FILE_OPERATIONS)
        return sorted(
            found, key=lambda place: (servers.index(place[0]), cases.index(place[1]), operations.index(place[2]))
        )

    def row(self, server: str, case: str, operation: str, peer: str) -> Row:
        """What is known of a peer in one place; see `Row`."""
        place = (server, case, operation)
        runs = self._of(*place, peer)
        if not runs:
            return Row(*place, peer, note=self._note(*place, peer))
        gigabytes = self.cases[case][1] / 1e9
        extra = median(run.extra_bytes for run in runs.values())
        return Row(
            *place,
            peer,
            seconds=median(run.seconds for run in runs.values()),
            gb_per_second=median(gigabytes * run.share / run.seconds for run in runs.values()),
            faster=self.faster(place, peer),
            cpu_seconds_per_gb=(median(run.cpu_seconds / run.share for run in runs.values()) or 0) / gigabytes,
            cpu=self.cpu(place, peer),
            extra_mib=None if extra is None else max(extra / 2**20, 0.0),
            requests=median(run.requests for run in runs.values()),
            runs=len(runs),
            share=min(run.share for run in runs.values()),
        )

    def faster(self, place: Place, peer: str, ours: str = "") -> float | None:
        """How many times as fast as this peer ours was: the median over the rounds of the ratio within each.

        Args:
            ours: the peer that is compared; by default the base of the other.
        """
        return self._ratio(place, peer, ours, lambda one, other: _seconds(other) / _seconds(one))

    def cpu(self, place: Place, peer: str) -> float | None:
        """How many times this peer's CPU seconds ours took, in the same way."""
        return self._ratio(
            place, peer, "", lambda one, other: (one.cpu_seconds / one.share) / (other.cpu_seconds / other.share)
        )

    def _ratio(self, place: Place, peer: str, ours: str, of: Callable[[Run, Run], float]) -> float | None:
        ours = ours or PEERS[peer].base
        if peer == ours:
            return None
        mine, its = self._of(*place, ours), self._of(*place, peer)
        return median(of(mine[number], its[number]) for number in mine.keys() & its.keys())

    def of(self, server: str, case: str, operation: str, peer: str) -> list[Run]:
        """The measurements, in the order of rounds."""
        place = (server, case, operation, peer)
        return [run for run in self.runs if (run.server, run.case, run.operation, run.peer) == place]

    def _of(self, server: str, case: str, operation: str, peer: str) -> dict[int, Run]:
        return {run.number: run for run in self.of(server, case, operation, peer)}

    def _note(self, server: str, case: str, operation: str, peer: str) -> str:
        for gap in self.gaps:
            of_all = (gap.case, gap.operation) == ("", "")
            if (gap.server, gap.peer) == (server, peer) and (of_all or (gap.case, gap.operation) == (case, operation)):
                return gap.note
        return f"no {operation}" if operation in PEERS[peer].lacks else ""


@dataclass(frozen=True)
class Row:
    """One operation of one peer: medians of its runs.

    Attributes:
        faster: see `Report.faster`; None for ours itself.
        cpu: see `Report.cpu`; None for ours itself.
        note: why there are no numbers, if there are none.
        runs: how many.
        share: the part of the case that was moved.
    """

    server: str
    case: str
    operation: str
    peer: str
    seconds: float | None = None
    gb_per_second: float | None = None
    faster: float | None = None
    cpu_seconds_per_gb: float | None = None
    cpu: float | None = None
    extra_mib: float | None = None
    requests: float | None = None
    note: str = ""
    runs: int = 0
    share: float = 1.0


def _seconds(run: Run) -> float:
    """What all of the case would take at the speed of a run."""
    return run.seconds / run.share


def median(values: Iterable[float | None]) -> float | None:
    """Of values that are known, or None."""
    known: Sequence[float] = [value for value in values if value is not None]
    return statistics.median(known) if known else None
