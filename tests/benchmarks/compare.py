"""Compare this package with its peers at saving and loading whole checkpoints, on one machine.

    pip install . -r tests/benchmarks/requirements.txt
    python tests/benchmarks/compare.py --rounds 5 --minutes 22 --json found.json --write tests/benchmarks

This measures what the generated tables of README.md show, and writes them and the picture. The servers are nginx by
http and by https, which discards uploads and takes little processor time, so that the clients' own cost shows; and
stores that are far away. ``--server``, ``--cases`` and ``--only`` replace those of the README. Exit status: 0; 1 if a
peer failed; 2 if a server could not be started. A goal that is missed does not change it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # for `python -m tests.benchmarks.compare`

import goals
import summary
from peers import PEERS
from plot import as_svg
from report import Report
from rounds import measure
from sections import CASES, FILES, SECTIONS, SHARDED, Section, asked
from servers import SERVERS, exit_on_sigterm, running
from table import NOTES, as_markdown, as_text, facts

_ROUNDS, _QUICK_ROUNDS = 5, 1
_README = Path(__file__).with_name("README.md")


def _facts(peers: Iterable[str]) -> dict[str, Any]:
    """What one has to know to repeat the run."""
    distributions = dict.fromkeys(["torch", *(name for peer in peers for name in PEERS[peer].distributions)])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}"
    return {
        "machine": f"{machine}, {platform.system()} {platform.release()}; client and server on it",
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
    names = [case.name for case in (*CASES, *SHARDED, FILES)]
    sections = [section.name for section in SECTIONS]
    parser.add_argument("--quick", action="store_true", help="smaller cases and one round: to see that all works")
    parser.add_argument("--rounds", type=_positive, help=f"{_ROUNDS} if not given; some tables have fewer")
    parser.add_argument("--minutes", type=float, default=math.inf, help="fewer rounds, if all would take longer")
    parser.add_argument(
        "--sections", nargs="+", choices=sections, default=sections, help="of the README; by default all"
    )
    parser.add_argument("--server", nargs="+", choices=SERVERS, default=[], help="not those of the README, but these")
    parser.add_argument("--cases", nargs="+", choices=names, default=[], metavar="NAME", help=", ".join(names))
    parser.add_argument("--only", nargs="+", choices=PEERS, default=[], metavar="NAME", help=f"of: {', '.join(PEERS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements")
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="write README.md and speed.svg with what was found"
    )
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source", help="measure nothing, read this JSON")
    return parser.parse_args(given)


def _sections(arguments: argparse.Namespace) -> Sequence[Section]:
    if arguments.server or arguments.cases or arguments.only:
        return asked(arguments.server or list(SERVERS), arguments.cases, arguments.only)
    return [section for section in SECTIONS if section.name in arguments.sections]


def _measured(arguments: argparse.Namespace, sections: Sequence[Section]) -> Report:
    report = Report(_facts(peer for section in sections for peer in section.peers), {}, {})
    rounds = arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS)
    parts = [(section, server) for section in sections for server in section.servers]
    estimates = [section.estimate(rounds, quick=arguments.quick) for section, _ in parts]
    print(f"about {sum(estimates) / 60:.0f} minutes on two quiet cores", file=sys.stderr)
    end = time.monotonic() + 60 * arguments.minutes
    for number, (section, server) in enumerate(parts):
        plan = section.plan(rounds, quick=arguments.quick)
        report.cases |= {case.name: (str(case), case.nbytes) for case in plan.cases}
        report.servers[server] = SERVERS[server]
        began = time.monotonic()
        # The first come first: what follows needs time for a round each.
        needed = sum(each.estimate(1, quick=arguments.quick) for each, _ in parts[number + 1 :])
        with running(server, plan.stored, plan.kinds) as target:
            measure(plan, target, report, end - needed)
        took, estimate = time.monotonic() - began, estimates[number]
        print(f"{section.name} on {server} took {took:.0f} s, of about {estimate:.0f} s", file=sys.stderr)
        if arguments.json:
            arguments.json.write_text(report.as_json())
    return report


def _readme(report: Report, text: str) -> str:
    """The README with the tables of a report; parts of which nothing was measured stay."""
    parts = {section.name: as_markdown(report, section) for section in SECTIONS}
    parts["summary"] = summary.as_markdown(report)
    parts["goals"] = goals.as_markdown(report)
    parts["facts"] = "\n".join(f"- {line}" for line in (*facts(report, short=True), *NOTES))
    for name, part in parts.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, after = text.partition(begin)
        if part and found:
            text = f"{before}{begin}\n{part}\n\n{end}{after.partition(end)[2]}"
    return text


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _arguments(given)
    try:
        sections = _sections(arguments)
        report = Report.from_json(arguments.source.read_text()) if arguments.source else _measured(arguments, sections)
    except (FileNotFoundError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.write:
        text = _README.read_text()
        arguments.write.mkdir(parents=True, exist_ok=True)
        (arguments.write / "README.md").write_text(_readme(report, text))
        (arguments.write / "speed.svg").write_text(as_svg(report))
    print(as_text(report), goals.as_text(report), sep="\n\n")
    return int(report.failed)


if __name__ == "__main__":
    exit_on_sigterm()
    sys.exit(main())
