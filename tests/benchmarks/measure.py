"""One measurement, in a process of its own: ``python measure.py`` with a task on its standard input."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cases import WARM_UP, Case, State, difference
from peers import PEERS, Client, Peer
from target import Target

_TIMEOUT = 900.0
_PROC = Path("/proc/self")
_CERTIFICATES = Path("/etc/ssl/certs")
_ERROR_LENGTH = 160
_SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class Task:
    """What a process does.

    Attributes:
        peer: its name.
        operation: "save" or "load".
        check: whether to compare afterwards what was loaded, or what the peer loads of what it saved, with what it
            should be; where the server drops what is saved, to see that it all came.
    """

    peer: str
    operation: str
    case: Case
    target: Target
    check: bool = False


@dataclass(frozen=True)
class Result:
    """What a process found.

    Attributes:
        seconds: on the wall.
        cpu_seconds: of the client, in its own code and in the kernel.
        extra_bytes: memory at the peak beyond the state dict; None where the system does not tell.
        requests: that the server answered; None if it does not tell.
        page_faults: pages of memory that were touched for the first time.
        settings: part size and requests in flight.
        error: what went wrong, in one line; the rest is then of no meaning.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    extra_bytes: int | None = None
    requests: int | None = None
    page_faults: int = 0
    settings: str = ""
    error: str | None = None


def in_process(task: Task) -> Result:
    """Run a task in a fresh process."""
    command = [*_trusting(task.target), sys.executable, __file__]
    given = json.dumps(asdict(task))
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=_TIMEOUT, env=task.target.environment()
        )
    except subprocess.TimeoutExpired:
        return Result(error=f"not done after {_TIMEOUT:g} seconds")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = done.stderr.strip().splitlines()
        return Result(error=f"ended with status {done.returncode}: {said[-1] if said else 'no message'}")
    return Result(**json.loads(lines[-1]))


def _trusting(target: Target) -> list[str]:
    """What to begin a command with, so that libraries that know only the system's certificates trust the server too.

    The folder of certificates is replaced for this command alone, where root may do so.
    """
    if not target.authority or os.geteuid() or not (shutil.which("unshare") and _CERTIFICATES.is_dir()):
        return []
    script = f'mount -t tmpfs none {_CERTIFICATES} && cp "$0" {_CERTIFICATES}/ca-certificates.crt && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, target.authority]


def run(task: Task) -> Result:
    """Run a task in this process."""
    peer = PEERS[task.peer]
    client = peer.connect(task.target)
    measured, problem = (_save if task.operation == "save" else _load)(task, peer, client)
    return replace(measured, settings=client.settings, error=problem)


def _save(task: Task, peer: Peer, client: Client) -> tuple[Result, str | None]:
    """What was found, and what is wrong with what was saved, if that is asked."""
    target, key = task.target, f"by-{task.peer}-{task.case.key(peer.kind)}"
    state = _state(peer, task.case)
    client.save(_state(peer, WARM_UP), f"by-{task.peer}-{WARM_UP.key(peer.kind)}")
    before = target.received() if task.check and not target.stores else 0
    measured, _ = _measured(lambda: client.save(state, key), 0, target)
    if not task.check:
        return measured, None
    if target.stores:
        return measured, difference(state, client.load(key, task.case))
    if target.has_received(task.case.nbytes, before):
        return measured, None
    return measured, f"sent {target.received() - before} bytes of {task.case.nbytes}"


def _load(task: Task, peer: Peer, client: Client) -> tuple[Result, str | None]:
    """What was found, and what is wrong with what was loaded, if that is asked."""
    client.load(WARM_UP.key(peer.kind), WARM_UP)
    key = task.case.key(peer.kind)
    measured, state = _measured(lambda: client.load(key, task.case), task.case.nbytes, task.target)
    if not task.check:
        return measured, None
    return measured, difference(_state(peer, task.case) if peer.nests else task.case.dotted(), state)


def _state(peer: Peer, case: Case) -> State:
    return case.state() if peer.kind == "torch" else case.flat()


def _measured(operation: Callable[[], State | None], own: int, target: Target) -> tuple[Result, State | None]:
    gc.collect()
    gc.freeze()  # else it is luck whether all objects of the process are gone through once more meanwhile
    requests = target.requests()
    before = _status("VmRSS")
    with _peak() as peak:
        faults, cpu, start = _page_faults(), _cpu_seconds(), time.perf_counter()
        state = operation()
        seconds, cpu, faults = time.perf_counter() - start, _cpu_seconds() - cpu, _page_faults() - faults
    extra = None if before is None or not peak else peak[0] - before - own
    after = target.requests()
    sent = None if after is None or requests is None else after - requests
    return Result(seconds, cpu, extra, sent, faults), state


@contextlib.contextmanager
def _peak() -> Iterator[list[int]]:
    """The most memory of the process within the block, in a list filled when it is left; empty if unknown."""
    peak: list[int] = []
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:  # not every container may
        with _sampled(peak):
            yield peak
        return
    yield peak
    if (found := _status("VmHWM")) is not None:
        peak.append(found)


@contextlib.contextmanager
def _sampled(peak: list[int]) -> Iterator[None]:
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            if (found := _status("VmRSS")) is not None:
                peak[:] = [max(found, *peak)] if peak else [found]

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _status(name: str) -> int | None:
    """A line of the kernel's account of this process, in bytes."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", (_PROC / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _task(given: dict[str, Any]) -> Task:
    return Task(**{**given, "case": Case(**given["case"]), "target": Target(**given["target"])})


def main() -> None:
    """Read a task, run it, and print its result as a line of JSON."""
    try:
        result = run(_task(json.load(sys.stdin)))
    except Exception as error:  # every peer has its own
        text = " ".join(str(error).split())
        result = Result(error=f"{type(error).__name__}: {text}"[:_ERROR_LENGTH])
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
