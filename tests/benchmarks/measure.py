"""One measurement, in a separate process, forked from one that has imported torch and created the state dict."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import distributed
import torch
from cases import WARM_UP, Case, State, difference
from many_files import call_of
from peers import PEERS, Client, Peer
from target import Target, memory_folder
from usage import cpu_seconds, extra_memory, page_faults

_TIMEOUT = 900.0
_CERTIFICATES = Path("/etc/ssl/certs")
_ERROR_LENGTH = 160
_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Task:
    """What a process does.

    Attributes:
        peer: its name.
        operation: "save" or "load"; of a peer with several ranks also "columns"; of many files one of
            ``many_files.FILE_OPERATIONS``.
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
        extra_bytes: memory at the peak beyond the state dict; None where the system does not say.
        requests: that the server answered; None if it does not say.
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


class Launcher:
    """Runs tasks on one server, each in a fresh process; ends with its ``with`` block.

    Args:
        target: the server.
    """

    def __init__(self, target: Target) -> None:
        command = [*_trusting(target), sys.executable, __file__]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=target.environment(),
            start_new_session=True,
        )

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and what it has forked
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()  # it ends when its standard input does

    def run(self, task: Task) -> Result:
        """Run a task.

        Raises:
            RuntimeError: if the process that forks cannot go on.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(asdict(task)), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            msg = f"The process for measurements ended with status {self._process.wait()}."
            raise RuntimeError(msg)
        return Result(**json.loads(line))


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
    if peer.ranks > 1:
        return distributed.run(client, task)
    if peer.kind == "files":
        measured, problem = _call(task, peer, client)
    else:
        measured, problem = (_save if task.operation == "save" else _load)(task, peer, client)
    return replace(measured, settings=client.settings, error=problem)


def _save(task: Task, peer: Peer, client: Client) -> tuple[Result, str | None]:
    """The measurement, and what is wrong with the saved objects, if they are compared."""
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
    """The measurement, and what is wrong with the loaded objects, if they are compared."""
    client.load(WARM_UP.key(peer.kind), WARM_UP)
    key = task.case.key(peer.kind)
    measured, state = _measured(lambda: client.load(key, task.case), task.case.nbytes, task.target)
    if not task.check:
        return measured, None
    return measured, difference(_state(peer, task.case) if peer.nests else task.case.dotted(), state)


def _call(task: Task, peer: Peer, client: Any) -> tuple[Result, str | None]:
    """The measurement of a call for many files, and what is wrong with the files, if they are compared."""
    target, operation = task.target, task.operation
    own = f"by-{task.peer}-" if operation in ("put", "pipe") else ""
    with (
        tempfile.TemporaryDirectory(dir=memory_folder(task.case.nbytes)) as folder,
        tempfile.TemporaryDirectory() as first,
    ):
        call_of(client, operation, WARM_UP, f"{own}{WARM_UP.key(peer.kind)}/", Path(first))[0]()
        call, is_right = call_of(client, operation, task.case, f"{own}{task.case.key(peer.kind)}/", Path(folder))
        before = target.received() if task.check and own and not target.stores else 0
        measured, _ = _measured(call, task.case.nbytes if operation == "cat" else 0, target)
        if not task.check:
            return measured, None
        if not is_right():
            return measured, "the contents differ"
    if own and not target.stores and not target.has_received(task.case.nbytes, before):
        return measured, f"sent {target.received() - before} bytes of {task.case.nbytes}"
    return measured, None


@functools.lru_cache(maxsize=2)
def _made(case: Case, nested: bool) -> State:
    return case.state() if nested else case.flat()


def _state(peer: Peer, case: Case) -> State:
    return WARM_UP.flat() if case == WARM_UP else _made(case, peer.kind == "torch" and case.mixed)


def _measured(operation: Callable[[], State | None], own: int, target: Target) -> tuple[Result, State | None]:
    gc.collect()
    gc.freeze()  # else it is luck whether all objects of the process are gone through once more meanwhile
    requests = target.requests()
    with extra_memory() as peak:
        faults, cpu, start = page_faults(), cpu_seconds(), time.perf_counter()
        state = operation()
        seconds, cpu, faults = time.perf_counter() - start, cpu_seconds() - cpu, page_faults() - faults
    extra = peak[0] - own if peak else None
    after = target.requests()
    sent = None if after is None or requests is None else after - requests
    return Result(seconds, cpu, extra, sent, faults), state


def _task(given: dict[str, Any]) -> Task:
    return Task(**{**given, "case": Case(**given["case"]), "target": Target(**given["target"])})


def _forked(task: Task) -> Result:
    """Run a task in a process for each of its ranks; what the first found."""
    peer = PEERS[task.peer]
    if peer.ranks == 1 and peer.kind != "files" and (task.operation == "save" or task.check):
        _state(peer, task.case)  # made once, for all
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as messages:
        found, pids = Path(folder) / "found", []
        for rank in range(peer.ranks):
            if not (pid := os.fork()):
                _child(task, rank, folder, found, messages.fileno())
            pids.append(pid)
        statuses = _ended(pids)
        if None in statuses:
            return Result(error=f"not done after {_TIMEOUT:g} seconds")
        if found.exists():
            return Result(**json.loads(found.read_text()))
        messages.seek(0)
        said = messages.read().decode(errors="replace").strip().splitlines()
        return Result(error=f"ended with status {statuses}: {said[-1] if said else 'no message'}"[:_ERROR_LENGTH])


def _child(task: Task, rank: int, folder: str, found: Path, messages: int) -> NoReturn:
    torch.set_num_threads(os.cpu_count() or 1)
    os.dup2(messages, 1)
    os.dup2(messages, 2)
    if (ranks := PEERS[task.peer].ranks) > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks), MEET=f"{folder}/meet")
    try:
        result = run(task)
    except Exception as error:  # every peer has its own
        text = " ".join(str(error).split())
        result = Result(error=f"{type(error).__name__}: {text}"[:_ERROR_LENGTH])
    if rank == 0 or result.error:
        whole = found.with_name(f"found-{rank}")
        whole.write_text(json.dumps(asdict(result)))
        if not found.exists():  # the first error is the cause of the others'
            whole.rename(found)
    os._exit(0)


def _ended(pids: list[int]) -> list[int | None]:
    """The exit status of each process; None of one that was killed after the time limit."""
    deadline, statuses = time.monotonic() + _TIMEOUT, dict[int, int | None]()
    while len(statuses) < len(pids):
        late = time.monotonic() > deadline
        for pid in pids:
            if pid in statuses:
                continue
            if late:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, 0 if late else os.WNOHANG)
            if ended:
                statuses[pid] = None if late else os.waitstatus_to_exitcode(status)
        time.sleep(_POLL_SECONDS)
    return list(statuses.values())


def main() -> None:
    """Read tasks, a line of JSON each, and print the result of each as a line."""
    torch.set_num_threads(1)  # threads of OpenMP would not survive a fork
    importlib.import_module("fsspec_csx.distributed")  # else each process takes a second for it, and for s3fs
    for line in sys.stdin:
        print(json.dumps(asdict(_forked(_task(json.loads(line))))), flush=True)


if __name__ == "__main__":
    main()
