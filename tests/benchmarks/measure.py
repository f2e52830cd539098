"""One measurement, in a process of its own: ``python measure.py`` with a task on its standard input."""

from __future__ import annotations

import contextlib
import gc
import json
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cases import WARM_UP, Case, State, difference
from peers import PEERS, Client
from target import Target

_TIMEOUT = 900.0
_PROC = Path("/proc/self")
_ERROR_LENGTH = 160
_SAMPLE_SECONDS = 0.002


@dataclass(frozen=True)
class Task:
    """What a process does.

    Attributes:
        peer: its name.
        operation: "save", "load" or "verify": to load what it saved and compare it, or where the server drops that,
            to see that it all came, and to load and compare what somebody else saved.
    """

    peer: str
    operation: str
    case: Case
    target: Target

    @property
    def saved(self) -> Case:
        """The case under the name that this peer saves it by."""
        return Case(f"{self.case.name}-by-{self.peer}", self.case.tensors, self.case.length)


@dataclass(frozen=True)
class Result:
    """What a process found.

    Attributes:
        seconds: on the wall.
        cpu_seconds: of the client, in its own code and in the kernel.
        extra_bytes: memory at the peak beyond the state dict; None where the system does not tell.
        settings: part size and requests in flight.
        error: what went wrong, in one line; the rest is then of no meaning.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    extra_bytes: int | None = None
    settings: str = ""
    error: str | None = None


def in_process(task: Task) -> Result:
    """Run a task in a fresh process."""
    command = [sys.executable, __file__]
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


def run(task: Task) -> Result:
    """Run a task in this process."""
    client = PEERS[task.peer].connect(task.target)
    if task.operation == "verify":
        return Result(settings=client.settings, error=_problem(task, client))
    operation: Callable[[], State | None]
    if task.operation == "save":
        state = task.case.state()
        client.save(WARM_UP.state(), f"{WARM_UP.name}-by-{task.peer}.pt")
        operation, own = (lambda: client.save(state, task.saved.key)), 0
    else:
        client.load(WARM_UP)
        operation, own = (lambda: client.load(task.case)), task.case.nbytes
    return _measured(operation, own, client.settings)


def _problem(task: Task, client: Client) -> str | None:
    """What is wrong with how a peer saves and loads, or None."""
    state = task.case.state()
    before = 0 if task.target.stores else task.target.received()
    client.save(state, task.saved.key)
    if task.target.stores:
        return difference(state, client.load(task.saved))
    if not task.target.has_received(task.case.nbytes, before):
        return f"sent {task.target.received() - before} bytes of {task.case.nbytes}"
    return difference(state, client.load(task.case))


def _measured(operation: Callable[[], State | None], own: int, settings: str) -> Result:
    gc.collect()
    before = _status("VmRSS")
    with _peak() as peak:
        cpu, start = _cpu_seconds(), time.perf_counter()
        result = operation()
        seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
    del result
    extra = None if before is None or not peak else peak[0] - before - own
    return Result(seconds, cpu, extra, settings)


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


def _task(given: dict[str, Any]) -> Task:
    return Task(given["peer"], given["operation"], Case(**given["case"]), Target(**given["target"]))


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
