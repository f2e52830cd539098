"""How long Python's lock is held for each GB: ``python tests/benchmarks/lock_share.py [--runs N]``.

Only one thread at a time holds the interpreter's lock (GIL), so the speed of one interpreter is at most 1 / (seconds
that the lock is held for each GB), however many cores there are. A timer interrupts each thread after some processor
time, and a signal handler in C notes whether the thread holds the lock. The time for which threads wait for the lock is
not counted, nor the cost of passing it to another core.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cases import Case
from peers import PEERS
from servers import SERVERS, exit_on_sigterm, running
from target import Target
from usage import cpu_seconds

_SOURCE = """
#include <signal.h>
#include <string.h>
#include <sys/time.h>

long all, held;
static void *(*attached)(void), *(*own)(void);

static void note(int number) {
    void *state = attached();
    __atomic_add_fetch(&all, 1, __ATOMIC_RELAXED);
    if (state && state == own()) __atomic_add_fetch(&held, 1, __ATOMIC_RELAXED);
}

void watch(void *attached_state, void *own_state, long microseconds) {
    struct itimerval every = {{0, microseconds}, {0, microseconds}};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = note;
    action.sa_flags = SA_RESTART;
    attached = attached_state;
    own = own_state;
    if (microseconds) sigaction(SIGPROF, &action, 0);
    setitimer(ITIMER_PROF, &every, 0);
}
"""
_MICROSECONDS = 1000  # the system's clock may tick less often


@dataclass
class Held:
    """Processor time of this process.

    Attributes:
        cpu_seconds: of all threads.
        share: the part of it in which a thread held the lock.
    """

    cpu_seconds: float = 0.0
    share: float = 0.0


@contextlib.contextmanager
def watched() -> Iterator[Held]:
    """Measure a block; what is yielded is filled when it is left.

    Raises:
        FileNotFoundError: there is no C compiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "lock.c"), Path(folder, "lock.so")
        source.write_text(_SOURCE)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
        native = ctypes.CDLL(str(library))
    names = ("PyThreadState_GetUnchecked", "_PyThreadState_UncheckedGet")  # since Python 3.13, and before
    attached = next(getattr(ctypes.pythonapi, name) for name in names if hasattr(ctypes.pythonapi, name))
    own = ctypes.pythonapi.PyGILState_GetThisThreadState
    functions = [ctypes.cast(each, ctypes.c_void_p) for each in (attached, own)]
    found, before = Held(), cpu_seconds()
    native.watch(*functions, ctypes.c_long(_MICROSECONDS))
    try:
        yield found
    finally:
        native.watch(*functions, ctypes.c_long(0))
        found.cpu_seconds = cpu_seconds() - before
        ticks, held = (ctypes.c_long.in_dll(native, name).value for name in ("all", "held"))
        found.share = held / max(ticks, 1)


def measured(peer: str, case: Case, runs: int, target: Target) -> dict[str, list[Held]]:
    """Save and load so many times; the connections of the first time serve the others too."""
    client: Any = PEERS[peer].connect(target)
    kind, found = PEERS[peer].kind, dict[str, list[Held]]()
    state = case.flat()
    for _ in range(runs):
        with watched() as held:
            client.save(state, f"by-{case.key(kind)}")
        found.setdefault("save", []).append(held)
    for _ in range(runs):
        state = {}  # freed only here, as a thread that frees memory holds the lock
        with watched() as held:
            state = client.load(case.key(kind), case)
        found.setdefault("load", []).append(held)
    return found


def main() -> None:
    """Measure each peer in a process of its own, and print a table of medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tensors", type=int, default=64, help="of 16 MiB each")
    parser.add_argument("--server", nargs="+", choices=SERVERS, default=["nginx", "nginx-tls"])
    parser.add_argument("--only", nargs="+", choices=PEERS, default=["ours", "sockets"])
    parser.add_argument("--target", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    case = Case("large", tensors=arguments.tensors, size=16 * 2**20)
    if arguments.target:
        target = Target(**json.loads(arguments.target))
        found = measured(arguments.only[0], case, arguments.runs, target)
        print(json.dumps({operation: [asdict(each) for each in runs] for operation, runs in found.items()}))
        return
    print("| | CPU s/GB | the lock held, s/GB | limit of one interpreter, GB/s |\n|---|---:|---:|---:|")
    for server in arguments.server:
        with running(server, (case,), [PEERS[name].kind for name in arguments.only]) as target:
            for peer in arguments.only:
                numbers = ["--runs", str(arguments.runs), "--tensors", str(arguments.tensors)]
                command = [sys.executable, __file__, *numbers, "--only", peer, "--target", json.dumps(asdict(target))]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=target.environment())
                for operation, runs in json.loads(done.stdout).items():
                    _print_row(f"{server}: {operation}, {PEERS[peer].label}", [Held(**run) for run in runs], case)


def _print_row(label: str, runs: list[Held], case: Case) -> None:
    gb = case.nbytes / 1e9
    cpu = median(each.cpu_seconds for each in runs) / gb
    held = median(each.cpu_seconds * each.share for each in runs) / gb
    print(f"| {label} | {cpu:.2f} | {held:.3f} | {1 / held:.1f} |", flush=True)


if __name__ == "__main__":
    exit_on_sigterm()
    main()
