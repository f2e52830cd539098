"""The command ``cszoo``, in a separate process or in this one."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from forked import python

from fsspec_csx.cli import main

DONE, DIFFERENT, USAGE, FAILED = 0, 1, 2, 3
"""Exit statuses."""


def cszoo(
    *arguments: str, environment: dict[str, str] | None = None, noun: str = "checkpoint", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a verb of ``cszoo checkpoint``.

    Args:
        arguments: the verb, and what follows it.
        environment: variables in addition to those of this process.
        noun: what stands before the verb; ``fit`` and ``validate`` stand there without one.
        options: those of ``subprocess.run``, such as ``input``.

    Returns:
        What it printed, and its exit status.
    """
    command = [*python(), "-m", "fsspec_csx", noun, *arguments]
    report = {"capture_output": True, "text": True, "timeout": 250, "env": {**os.environ, **(environment or {})}}
    return subprocess.run(command, check=False, **{**report, **options})


def run(*arguments: str) -> int:
    """The exit status of a verb of ``cszoo checkpoint`` in this process."""
    return main(["checkpoint", *arguments])


def failure(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The lines of cause and remedy of a command that failed, and printed nothing else."""
    assert done.returncode == FAILED, done
    cause, remedy = done.stderr.splitlines()
    assert cause.startswith("cszoo: ")
    return cause, remedy


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is waited for at the end of the block, and killed, with its group, if an exception leaves it.

    Args:
        command: the program and its arguments.
        options: those of ``subprocess.Popen``.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            if options.get("start_new_session"):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def terminal() -> tuple[int, int]:
    """Both ends of a terminal of the usual width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return ours, theirs
