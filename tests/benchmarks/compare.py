"""Saving and loading whole checkpoints: ours beside what else there is, on one machine.

    pip install . -r tests/benchmarks/requirements.txt
    python tests/benchmarks/compare.py --server nginx

Every measurement runs in a fresh process, which first saves or loads a small checkpoint, so that imports and the
first connection do not count. The runs of all peers are mixed at random. Exit status: 0, 1 if a peer failed, 2 if the
server cannot be had.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import random
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m tests.benchmarks.compare`

from cases import Case
from measure import Result, Task, in_process
from peers import PEERS
from servers import running
from table import Row, as_json, as_text, median
from target import Target

_MIB = 2**20
_SMALL = 1024  # float32 numbers: 4 KiB
_OPERATIONS = ("save", "load")
_SEED = 1


@dataclass(frozen=True)
class Plan:
    """What is to be measured: names of peers, cases, and how often."""

    peers: tuple[str, ...]
    cases: tuple[Case, ...]
    runs: int

    @property
    def space(self) -> int:
        """Bytes that a server which stores everything may come to keep."""
        saves = len(self.peers) * (self.runs + 1) + 1
        return saves * sum(case.nbytes for case in self.cases)


def measure(plan: Plan, target: Target) -> tuple[list[Row], dict[str, str]]:
    """Measure everything on a server that has the cases to load.

    Returns:
        A row for each case, operation and peer, and the settings of each peer that works.
    """
    notes = {name: note for name in plan.peers if (note := _excluded(name, target))}
    able = [name for name in plan.peers if name not in notes]
    settings: dict[str, str] = {}
    broken: dict[tuple[str, str, str], str] = {}
    results: dict[tuple[str, str, str], list[Result]] = {}
    for name in able:
        for case in plan.cases:
            _tell(f"verify {case.name} {name}")
            checked = in_process(Task(name, "verify", case, target))
            settings[name] = checked.settings or settings.get(name, "")
            if checked.error:
                broken |= {(case.name, operation, name): checked.error for operation in _OPERATIONS}
    order = random.Random(_SEED)
    for number in range(plan.runs):
        turn = [(case, operation, name) for case in plan.cases for operation in _OPERATIONS for name in able]
        order.shuffle(turn)
        for case, operation, name in turn:
            place = (case.name, operation, name)
            if place in broken:
                continue
            _tell(f"run {number + 1} of {plan.runs}: {' '.join(place)}")
            result = in_process(Task(name, operation, case, target))
            if result.error:
                broken[place] = result.error
            results.setdefault(place, []).append(result)
    rows = []
    for case in plan.cases:
        for operation in _OPERATIONS:
            for name in plan.peers:
                place = (case.name, operation, name)
                if name in notes or place in broken:
                    note = notes.get(name) or f"error: {broken[place]}"
                    rows.append(Row(*place, note=note, failed=place in broken))
                else:
                    verified = "equal" if operation == "load" or target.stores else "received"
                    rows.append(_row(case, place, results[place], verified))
    return rows, settings


def _excluded(name: str, target: Target) -> str | None:
    """Why a peer is not measured."""
    if any(importlib.util.find_spec(module) is None for module in PEERS[name].modules):
        return "not installed"
    if PEERS[name].unsigned and target.stores:
        return "does not sign its requests; see --server nginx"
    return None


def _row(case: Case, place: tuple[str, str, str], results: Sequence[Result], verified: str) -> Row:
    gigabytes = case.nbytes / 1e9
    seconds = median([result.seconds for result in results])
    cpu = median([result.cpu_seconds for result in results])
    extra = median([result.extra_bytes for result in results])
    assert seconds
    assert cpu is not None
    mib = None if extra is None else max(extra / _MIB, 0.0)
    return Row(*place, seconds, gigabytes / seconds, cpu / gigabytes, mib, verified)


def _facts(plan: Plan, server: str, settings: dict[str, str]) -> dict[str, Any]:
    """What one has to know to repeat the run."""
    distributions = dict.fromkeys(["torch", *(name for peer in plan.peers for name in PEERS[peer].distributions)])
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "server": {"nginx": "nginx, drops what is put", "local": "LocalS3 (SeaweedFS), stores it"}[server],
        "cases": {case.name: str(case).partition(": ")[2] for case in plan.cases},
        "runs": f"{plan.runs}, medians of them",
        "versions": {name: _version(name) for name in distributions},
        "settings": settings,
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _tell(what: str) -> None:
    if sys.stderr.isatty():
        print(what, file=sys.stderr)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1. Give a number from 1 on.")
    return number


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="compare.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", choices=["nginx", "local"], default="nginx", help="the cheapest one, or a real one")
    parser.add_argument("--size-mib", type=_positive, default=1024, help="of the checkpoint with large tensors")
    parser.add_argument("--tensors", type=_positive, default=64, help="how many large tensors")
    parser.add_argument("--small", type=int, default=5000, help="how many tensors of 4 KiB; 0 to leave this case out")
    parser.add_argument("--runs", type=_positive, default=5, help="of each measurement")
    parser.add_argument("--only", nargs="+", choices=list(PEERS), metavar="NAME", help=f"of: {', '.join(PEERS)}")
    parser.add_argument("--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args(given)
    if arguments.size_mib * _MIB // 4 < arguments.tensors:
        parser.error("The tensors would be empty. Give more --size-mib or fewer --tensors.")
    return arguments


def _plan(arguments: argparse.Namespace) -> Plan:
    cases = [Case("large", arguments.tensors, arguments.size_mib * _MIB // 4 // arguments.tensors)]
    if arguments.small > 0:
        cases.append(Case("small", arguments.small, _SMALL))
    chosen = tuple(name for name in PEERS if not arguments.only or name in arguments.only)
    return Plan(chosen, tuple(cases), arguments.runs)


def _terminated(*_: object) -> NoReturn:
    # The default would leave the server running.
    sys.exit(128 + signal.SIGTERM)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _arguments(given)
    plan = _plan(arguments)
    try:
        with running(arguments.server, plan.cases, plan.space if arguments.server == "local" else 0) as target:
            rows, settings = measure(plan, target)
    except (FileNotFoundError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    facts = _facts(plan, arguments.server, settings)
    print((as_json if arguments.output == "json" else as_text)(facts, rows))
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
