"""Rounds: all peers are measured in turn, so that other programs on the machine slow all of them down alike."""

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
_FIRST = 2  # rounds in which all peers are measured


@dataclass(frozen=True)
class Plan:
    """What is to be measured.

    Attributes:
        peers: names of them.
        runs: how many rounds.
        operations: what each does.
        seldom: peers that have only the first rounds.
        slow: cases, operations and peers that have only the first rounds, and a part of the case.
    """

    peers: tuple[str, ...]
    cases: tuple[Case, ...]
    runs: int
    operations: tuple[str, ...] = OPERATIONS
    seldom: tuple[str, ...] = ()
    slow: tuple[tuple[str, str, str], ...] = ()

    @property
    def installed(self) -> list[str]:
        """The peers that can be measured."""
        return [
            name
            for name in self.peers
            if all(importlib.util.find_spec(module) is not None for module in PEERS[name].modules)
        ]

    def tasks(self, number: int) -> list[tuple[Case, str, str]]:
        """The measurements of a round: case, operation and peer."""
        return [
            (case, operation, name)
            for case in self.cases
            for operation in self.operations
            for name in self.installed
            if operation not in PEERS[name].lacks
            if number < _FIRST or not (name in self.seldom or (case.name, operation, name) in self.slow)
        ]

    def moved(self, case: Case, operation: str, name: str) -> Case:
        """What a peer saves or loads of a case: all of it, or a part."""
        return case.part() if (case.name, operation, name) in self.slow else case

    @property
    def stored(self) -> list[Case]:
        """The cases, and the parts of them that are needed."""
        parts = (self.moved(case, operation, name) for case, operation, name in self.tasks(0))
        return list(dict.fromkeys([*self.cases, *parts]))

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
    runs: dict[tuple[str, str, str], list[Run]] = {}
    broken: set[tuple[str, str, str]] = set()
    order = random.Random(_SEED)
    began = time.monotonic()
    with Launcher(target) as launcher:
        for number in range(plan.runs):
            if number and (now := time.monotonic()) + (now - began) / number > until:
                break
            tasks = plan.tasks(number)
            places = list(dict.fromkeys(task[:2] for task in tasks))
            order.shuffle(places)
            order.shuffle(tasks)
            tasks.sort(key=lambda task: places.index(task[:2]))
            for case, operation, name in tasks:
                place = (case.name, operation, name)
                if place in broken:
                    continue
                _print_status(f"round {number + 1} of {plan.runs}: {target.server} {' '.join(place)}")
                moved = plan.moved(case, operation, name)
                result = _done(launcher, Task(name, operation, moved, target, check=number == 0))
                report.settings[name] = result.settings or report.settings.get(name, "")
                share = moved.nbytes / case.nbytes
                runs.setdefault(place, []).append(_run(target.server, place, number, result, share))
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


def _run(server: str, place: tuple[str, str, str], number: int, result: Result, share: float) -> Run:
    return Run(
        server,
        *place,
        number,
        seconds=result.seconds,
        cpu_seconds=result.cpu_seconds,
        extra_bytes=result.extra_bytes,
        requests=result.requests,
        page_faults=result.page_faults,
        share=share,
    )


def _print_status(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
