"""Saving and loading whole checkpoints: ours beside what else there is, on one machine.

    pip install . -r tests/benchmarks/requirements.txt
    python tests/benchmarks/compare.py --json found.json --markdown table.md --plot plot.svg

Several servers in turn: nginx, which costs the least and drops what is put, so that the clients' own work shows, by
http and by https; stores that are far away; and a real one. Exit status: 0, 1 if a peer failed, 2 if a server cannot be
had; whether a goal was met does not count.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m tests.benchmarks.compare`

import goals
from cases import Case
from peers import PEERS
from plot import as_svg
from report import Report
from rounds import Plan, measure
from servers import SERVERS, running
from table import as_markdown, as_text

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
_CASES = (
    Case("large", tensors=64, size=16 * _MIB),
    Case("single", tensors=1, size=_GIB),
    Case("small", tensors=5000, size=4 * _KIB),
    Case("mixed", tensors=200, size=4 * _MIB, mixed=True),
)
_QUICK = (
    Case("large", tensors=16, size=16 * _MIB),
    Case("single", tensors=1, size=256 * _MIB),
    Case("small", tensors=1000, size=4 * _KIB),
    _CASES[3],
)
_RUNS, _QUICK_RUNS = 5, 1


def _facts(plan: Plan) -> dict[str, Any]:
    """What one has to know to repeat the run."""
    distributions = dict.fromkeys(["torch", *(name for peer in plan.peers for name in PEERS[peer].distributions)])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}"
    return {
        "machine": f"{machine}, {platform.system()} {platform.release()}; client and server on it",
        "runs": f"medians of {plan.runs}",
        "versions": {"Python": platform.python_version(), **{name: _version(name) for name in distributions}},
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1. Give a number from 1 on.")
    return number


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="compare.py", description=(__doc__ or "").partition("\n")[0])
    names = [case.name for case in _CASES]
    parser.add_argument("--quick", action="store_true", help="smaller cases and one round: to see that all works")
    parser.add_argument("--runs", type=_positive, help=f"rounds; {_RUNS} if not given")
    parser.add_argument("--server", nargs="+", choices=SERVERS, default=list(SERVERS), help="by default all")
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="NAME", help=f"of: {', '.join(PEERS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write tables for a README")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture, as SVG")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source", help="measure nothing, read this JSON")
    return parser.parse_args(given)


def _plan(arguments: argparse.Namespace) -> Plan:
    cases = tuple(case for case in (_QUICK if arguments.quick else _CASES) if case.name in arguments.cases)
    chosen = tuple(name for name in PEERS if not arguments.only or name in arguments.only)
    return Plan(chosen, cases, arguments.runs or (_QUICK_RUNS if arguments.quick else _RUNS))


def _measured(arguments: argparse.Namespace) -> Report:
    plan = _plan(arguments)
    report = Report(_facts(plan), {case.name: (str(case), case.nbytes) for case in plan.cases}, {})
    for server in dict.fromkeys(arguments.server):
        report.servers[server] = SERVERS[server]
        with running(server, plan.cases, plan.kinds) as target:
            measure(plan, target, report)
        if arguments.json:
            arguments.json.write_text(report.as_json())
    return report


def _terminated(*_: object) -> NoReturn:
    # The default would leave the server running.
    sys.exit(128 + signal.SIGTERM)


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _arguments(given)
    try:
        report = Report.from_json(arguments.source.read_text()) if arguments.source else _measured(arguments)
    except (FileNotFoundError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.markdown:
        arguments.markdown.write_text(as_markdown(report))
    if arguments.plot:
        arguments.plot.write_text(as_svg(report))
    print(as_text(report), goals.as_text(report), sep="\n\n")
    return int(report.failed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
