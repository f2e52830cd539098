"""The long form of the fault suite: operations under a number of random faults, and operations that are killed.

    python tests/reliability/run.py --faults 1000 --kills 100 --seed 1
    python tests/reliability/run.py --faults 500 --kills 0 --seed 1 --tls

Progress goes to stderr, and the table, in Markdown, to stdout. Exit status 1 if anything was lost; then stderr has the
command that repeats it.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import multiprocessing
import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from kills import kills
from outcomes import Outcome, as_table, faults_in
from place import direct_client
from scenarios import SCENARIOS
from schedule import schedule
from trial import LONGEST, Bench, bench

from fsspec_csx.testing import Identity, LocalS3

_BUCKET = "trials"
_IDENTITIES = ("first", "second")
_AHEAD = 3
"""Trials in line for each process."""
_running = ExitStack()


@cache
def _bench(tls: bool) -> Bench:
    """A server and a proxy of this process's own."""
    logging.disable(logging.CRITICAL)  # trainings log their progress
    warnings.simplefilter("ignore")
    Finalize(None, _running.close, exitpriority=1)  # the proxy's threads would keep the process
    server = _running.enter_context(LocalS3(identities=[Identity.full(name) for name in _IDENTITIES]))
    direct_client(server).create_bucket(Bucket=_BUCKET)
    return _running.enter_context(bench(server, _BUCKET, _IDENTITIES, tls=tls))


@cache
def _fitting(name: str, tls: bool) -> dict[str, int]:
    return _bench(tls).fitting(SCENARIOS[name], f"unharmed-{list(SCENARIOS).index(name)}")


def tried(seed: int, number: int, tls: bool) -> Outcome:
    """Make one trial of a run; the same seed and number give the same faults."""
    faulthandler.dump_traceback_later(3 * LONGEST, exit=True)
    try:
        scenario = list(SCENARIOS.values())[number % len(SCENARIOS)]
        faults = schedule(f"{seed}-{number}", _fitting(scenario.name, tls))
        return _bench(tls).tried(scenario, faults, f"trial-{seed}-{number}")
    finally:
        faulthandler.cancel_dump_traceback_later()


def faults(seed: int, count: int, workers: int, tls: bool) -> Iterator[Outcome]:
    """The outcomes of trials, in order, until so many faults have happened."""
    happened = number = 0
    repeat = f"python tests/reliability/run.py --seed {seed}{' --tls' if tls else ''} --trial"
    pending: deque[Future[Outcome]] = deque()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            while happened < count:
                while len(pending) < _AHEAD * workers:
                    pending.append(pool.submit(tried, seed, number + len(pending), tls))
                outcome = pending.popleft().result()
                happened += len(outcome.faults)
                _tell(outcome, happened, f"{repeat} {number}")
                yield outcome
                number += 1
        finally:
            for future in pending:
                future.cancel()


def _tell(outcome: Outcome, happened: int, repeat: str) -> None:
    line = f"{happened:5} {outcome.result:8}{outcome.seconds:5.1f} s  {outcome.operation}: {', '.join(outcome.faults)}"
    print(line, file=sys.stderr, flush=True)
    if outcome.result == "lost":
        print(f"      LOST: {outcome.detail}\n      {repeat}", file=sys.stderr, flush=True)


def main() -> int:
    """Run, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=1000, help="how many are to happen")
    parser.add_argument("--kills", type=int, default=100, help="how many operations are to be killed besides")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--tls", action="store_true", help="speak TLS, to which more can happen")
    parser.add_argument("--trial", type=int, help="make this one alone")
    arguments = parser.parse_args()
    if arguments.trial is not None:
        with _running:
            outcomes = [tried(arguments.seed, arguments.trial, arguments.tls)]
            _tell(outcomes[0], len(outcomes[0].faults), "")
            print(outcomes[0].detail, file=sys.stderr)
    else:
        outcomes = [*faults(arguments.seed, arguments.faults, arguments.workers, arguments.tls)]
        for number, killed in enumerate(kills(arguments.seed, arguments.kills), 1):
            _tell(killed, number, f"python tests/reliability/kills.py {arguments.seed} {number}")
            outcomes.append(killed)
    print(as_table(outcomes))
    by_tls = ", over TLS" if arguments.tls else ""
    print(f"\n{len(outcomes):,} operations, {faults_in(outcomes):,} faults, seed {arguments.seed}{by_tls}.")
    return 1 if any(each.result == "lost" for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
