"""How long Python's lock is held for each GB: ``python tests/benchmarks/lock_share.py [--runs N]``.

Threads that hold the interpreter's lock (GIL) run one at a time, so an interpreter ends at 1 / (seconds held for a GB),
however many cores there are. A timer interrupts each thread by the processor time that it takes, and a signal handler
in C notes whether the thread holds the lock. Time in which a thread waits for the lock is not counted, nor what the
hand-over from one core to another costs.
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

from cases import WARM_UP, Case
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


def measured(peer: str, operation: str, case: Case, target: Target) -> Held:
    """Save or load once."""
    client: Any = PEERS[peer].connect(target)
    kind, state = PEERS[peer].kind, case.flat() if operation == "save" else {}
    client.save(WARM_UP.flat(), f"by-{WARM_UP.key(kind)}")
    client.load(WARM_UP.key(kind), WARM_UP)
    with watched() as found:
        if operation == "save":
            client.save(state, f"by-{case.key(kind)}")
        else:
            state = client.load(case.key(kind), case)
    return found


def main() -> None:
    """Measure in fresh processes, all in turn, and print a table of medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tensors", type=int, default=64, help="of 16 MiB each")
    parser.add_argument("--server", nargs="+", choices=SERVERS, default=["nginx", "nginx-tls"])
    parser.add_argument("--only", nargs="+", choices=PEERS, default=["ours", "sockets"])
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        peer, operation, case, target = json.loads(arguments.task)
        print(json.dumps(asdict(measured(peer, operation, Case(**case), Target(**target)))))
        return
    case = Case("large", tensors=arguments.tensors, size=16 * 2**20)
    gb = case.nbytes / 1e9
    print("| | CPU s/GB | the lock held, s/GB | an interpreter ends at GB/s |\n|---|---:|---:|---:|")
    for server in arguments.server:
        with running(server, (case,), [PEERS[name].kind for name in arguments.only]) as target:
            tasks = [(operation, peer) for operation in ("save", "load") for peer in arguments.only]
            runs: dict[tuple[str, str], list[Held]] = {task: [] for task in tasks}
            for operation, peer in tasks * arguments.runs:
                task = json.dumps([peer, operation, asdict(case), asdict(target)])
                command = [sys.executable, __file__, "--task", task]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=target.environment())
                runs[operation, peer].append(Held(**json.loads(done.stdout)))
        for (operation, peer), found in runs.items():
            cpu = median(each.cpu_seconds for each in found) / gb
            held = median(each.cpu_seconds * each.share for each in found) / gb
            print(f"| {server}: {operation}, {PEERS[peer].label} | {cpu:.2f} | {held:.3f} | {1 / held:.1f} |")


if __name__ == "__main__":
    exit_on_sigterm()
    main()
