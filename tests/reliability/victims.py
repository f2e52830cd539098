"""Processes that are killed during an operation: each is forked from one that has imported all modules, and has no
connections.

Run as a program, this file is that process: a line of JSON on stdin names what a child does, or which child to watch.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

_SECONDS = 150.0
NUMBERS = 17 * 2**18
"""In the largest tensor of a checkpoint, which takes 17 MiB: three parts of an upload."""


def state(seed: int, numbers: int = NUMBERS) -> dict[str, Any]:
    """What is saved: of two of them, no number is the same."""
    large = torch.arange(numbers, dtype=torch.int32) * 3 + seed
    small = {f"layer.{number}": torch.full((number + 1, 3), float(seed)) for number in range(8)}
    return {"large": large, "small": small, "step": seed}


class Victim:
    """A process that does something until it is ended.

    Attributes:
        pid: its number.
        reported: what it has written to stdout and stderr, as a file.
        status: its exit status, a negative number for a signal; None while it runs.
    """

    def __init__(self, clean: CleanProcess, job: Mapping[str, Any], report: Path) -> None:
        self._clean = clean
        self._lock = threading.Lock()
        self.report = report
        self.status: int | None = None
        self.pid = clean.ask(job)

    def poll(self) -> int | None:
        """Its status, if it has ended."""
        with self._lock:
            if self.status is None:
                self.status = self._clean.ask({"poll": self.pid})
            return self.status

    def send(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with self._lock:
            if self.status is None:  # so no other process has its id
                os.kill(self.pid, number)

    def wait(self, seconds: float = _SECONDS) -> int:
        """Its status, once it has ended; one that hangs is killed.

        Raises:
            TimeoutError: if it hangs.
        """
        deadline = time.monotonic() + seconds
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                msg = f"It hangs. It said: {self.said()}"
                raise TimeoutError(msg)
            time.sleep(0.005)
        return status

    def said(self) -> str:
        """What it has written."""
        return self.report.read_text(encoding="utf-8", errors="replace")


class CleanProcess:
    """The process from which victims are forked, and the folder for what they report; to be used in a ``with`` block.

    Args:
        modules: the names of those that it imports besides.
    """

    def __init__(self, *modules: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="victims-")
        self._lock = threading.Lock()
        self._count = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        tests = str(Path(__file__).parents[1] / "support")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, __file__, *modules]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def __enter__(self) -> CleanProcess:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        with self._process:
            self._process.stdin.close()
        self._folder.cleanup()

    @contextlib.contextmanager
    def started(self, operation: str, *arguments: Any, environment: Mapping[str, str]) -> Iterator[Victim]:
        """A victim; one that is still there at the end of the block is killed.

        Args:
            operation: the name of one of ``OPERATIONS``, or of a function in a module, as ``module:function``.
            arguments: its arguments.
            environment: variables in addition to those of this process at its start, without anybody's credentials.
        """
        self._count += 1
        report = Path(self._folder.name, str(self._count))
        report.touch()
        job = {"operation": operation, "arguments": arguments, "environment": {**environment}, "report": str(report)}
        victim = Victim(self, job, report)
        try:
            yield victim
        finally:
            if victim.poll() is None:
                victim.send(signal.SIGKILL)
                victim.wait()

    def run(self, operation: str, *arguments: Any, environment: Mapping[str, str]) -> tuple[int, str]:
        """The status of a process that is not killed, and what it reported."""
        with self.started(operation, *arguments, environment=environment) as victim:
            return victim.wait(), victim.said()

    def ask(self, question: Mapping[str, Any]) -> Any:
        """What the process answers."""
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


# -- what victims do ---------------------------------------------------------------------------------------------------


def save(path: str, seed: int, numbers: int = NUMBERS) -> None:
    """Save a checkpoint."""
    from fsspec_csx import save

    save(state(seed, numbers), path)


def save_cerebras(path: str, seed: int) -> None:
    """Save one that is of many objects."""
    from fsspec_csx import save

    save(state(seed), path, format="cerebras")


def async_save(path: str, seed: int) -> None:
    """Save one in the background, and end."""
    from fsspec_csx import async_save

    async_save(state(seed), path)


def load(path: str, seed: int) -> None:
    """Load a checkpoint, which is to be of this seed."""
    from fsspec_csx import load

    loaded = load(path)
    assert loaded["step"] == seed
    assert torch.equal(loaded["large"], state(seed)["large"])


def distributed_save(path: str, seed: int) -> None:
    """Save one as by torch.distributed.checkpoint, in this process alone."""
    from fsspec_csx import distributed

    distributed.save(state(seed), path)


def train(root: str, steps: int) -> None:
    """Train up to a step, with a checkpoint at every second step; or resume."""
    from training import loader, made

    trainer, _ = made(root, loop={"max_steps": steps, "eval_frequency": 0})
    trainer.fit(loader())


def cszoo(*arguments: str) -> None:
    """The command, with its exit status."""
    from fsspec_csx.cli import main

    sys.exit(main(["checkpoint", *arguments]))


OPERATIONS: dict[str, Callable[..., None]] = {
    each.__name__: each for each in (save, save_cerebras, async_save, load, distributed_save, train, cszoo)
}


# -- the clean process -------------------------------------------------------------------------------------------------


def _imported() -> None:
    """Import all that a victim may need, which takes seconds."""
    import aiobotocore.session
    import s3fs
    import training

    import fsspec_csx.cli
    import fsspec_csx.distributed
    import fsspec_csx.s3.filesystem
    import fsspec_csx.trainer

    assert all((aiobotocore.session, s3fs, training, fsspec_csx))
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.freeze()  # what a child does not look at, it need not copy


def _job() -> dict[str, Any] | None:
    """What this process, which is a child by then, is to do; None if nothing is left to be done."""
    for line in sys.stdin:
        question = json.loads(line)
        if "poll" in question:
            ended, status = os.waitpid(question["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if not answer:
                return dict(question)
        print(json.dumps(answer), flush=True)
    return None


def _operation(name: str) -> Callable[..., None]:
    module, colon, function = name.partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(module), function) if colon else OPERATIONS[name]
    return found


def _main() -> None:
    _imported()
    job = _job()
    if job is None:
        return
    report = os.open(job["report"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(report, number)
    for name in [*os.environ]:
        if name.startswith(("AWS_", "FSSPEC_")):
            del os.environ[name]
    os.environ.update(job["environment"])
    status = 1
    try:
        _operation(job["operation"])(*job["arguments"])
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    # The end of an interpreter, but for the destruction of all that was imported, which takes a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    _main()
