"""Rounds: all peers measured in turn, so that what the machine does besides befalls them alike."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from dataclasses import dataclass, replace

from cases import Case
from measure import Launcher, Result, Task
from peers import PEERS
from report import OPERATIONS, Gap, Report, Run
from servers import scratch
from target import Target

_SEED = 1


@dataclass(frozen=True)
class Plan:
    """What is to be measured: names of peers, cases, how many rounds, and what each does."""

    peers: tuple[str, ...]
    cases: tuple[Case, ...]
    runs: int
    operations: tuple[str, ...] = OPERATIONS

    @property
    def installed(self) -> list[str]:
        """The peers that can be measured."""
        return [
            name
            for name in self.peers
            if all(importlib.util.find_spec(module) is not None for module in PEERS[name].modules)
        ]

    @property
    def tasks(self) -> int:
        """How many measurements these are."""
        return len(self.installed) * len(self.cases) * len(self.operations) * self.runs

    @property
    def kinds(self) -> list[str]:
        """The forms of a checkpoint that these peers load."""
        return list(dict.fromkeys(PEERS[name].kind for name in self.installed))


def measure(plan: Plan, target: Target, report: Report, until: float = float("inf")) -> None:
    """Measure everything on a server that has the cases to load, and add it to the report.

    Args:
        until: no round begins, but the first, that would end after this time of ``time.monotonic``.
    """
    able = plan.installed
    report.gaps += [Gap(target.server, name, "not installed") for name in plan.peers if name not in able]
    places = [(case, operation) for case in plan.cases for operation in plan.operations]
    runs: dict[tuple[str, str, str], list[Run]] = {}
    broken: set[tuple[str, str, str]] = set()
    order = random.Random(_SEED)
    began = time.monotonic()
    with Launcher(target) as launcher:
        for number in range(plan.runs):
            if number and (now := time.monotonic()) + (now - began) / number > until:
                break
            for case, operation in order.sample(places, len(places)):
                for name in order.sample(able, len(able)):
                    place = (case.name, operation, name)
                    if place in broken or (operation == "save" and not PEERS[name].saves):
                        continue
                    _print_status(f"round {number + 1} of {plan.runs}: {target.server} {' '.join(place)}")
                    result = _done(launcher, Task(name, operation, case, target, check=number == 0))
                    report.settings[name] = result.settings or report.settings.get(name, "")
                    runs.setdefault(place, []).append(_run(target.server, place, number, result))
                    if result.error:
                        broken.add(place)
                        note = f"error: {result.error}"
                        report.gaps.append(Gap(target.server, name, note, case.name, operation, failed=True))
    report.runs += [run for place, found in runs.items() if place not in broken for run in found]


def _done(launcher: Launcher, task: Task) -> Result:
    if task.operation != "save":
        return launcher.run(task)
    with scratch(task.target) as empty:
        return launcher.run(replace(task, target=empty))


def _run(server: str, place: tuple[str, str, str], number: int, result: Result) -> Run:
    return Run(
        server,
        *place,
        number,
        seconds=result.seconds,
        cpu_seconds=result.cpu_seconds,
        extra_bytes=result.extra_bytes,
        requests=result.requests,
        page_faults=result.page_faults,
    )


def _print_status(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
