"""Forked processes begin, receive signals and end like started ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import running
from forked import python

WHERE = """
import json, os, sys, tempfile
import fsspec.config
variables = {name: os.environ.get(name) for name in ("OURS", "THEIRS", "HOME")}
report = [__name__, sys.argv, sys.path[0], os.getcwd(), variables, sys.stdin.read(), tempfile.gettempdir()]
json.dump([*report, fsspec.config.conf, sys.stdout.line_buffering, sorted(globals())], sys.stdout)
print("to stderr", file=sys.stderr)
"""
ENDING = """
import atexit, os, sys, threading, time

class Left:
    def __del__(self):
        os.write(1, b"freed")

def last():
    threading.main_thread().join()
    os.write(1, b"thread ")

atexit.register(os.write, 1, b"atexit ")
threading.Thread(target=last).start()
left = Left()
print("end", end=" ")
sys.exit(7)
"""
# Many short sleeps: a signal that comes just before a long one is not seen before its end.
WAITING = "import os, time; print(os.getpid(), flush=True); [time.sleep(0.1) for _ in range(600)]"


@pytest.fixture(params=["started", "forked"])
def begun(request: pytest.FixtureRequest) -> list[str]:
    """What a command begins with."""
    return [sys.executable] if request.param == "started" else python()


def ended(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """A command, run to its end."""
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, **options)


def test_begins(begun: list[str], tmp_path: Path) -> None:
    """It has the arguments, the folder, the variables and the standard streams that it is given, and no others."""
    theirs = {"THEIRS": "1", "HOME": "/", "TMPDIR": str(tmp_path), "FSSPEC_S3_ANON": "true"}
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PATH", "PYTHON", "LD_"))}
    done = ended([*begun, "-c", WHERE, "a", "b c"], cwd=tmp_path, env={**kept, **theirs}, input="typed\n")
    assert (done.returncode, done.stderr) == (0, "to stderr\n")
    name, arguments, first, folder, variables, typed, temporary, conf, buffered, names = json.loads(done.stdout)
    assert (name, arguments, first, folder) == ("__main__", ["-c", "a", "b c"], "", str(tmp_path))
    assert variables == {"OURS": None, "THEIRS": "1", "HOME": "/"}
    assert (typed, temporary, conf, buffered) == ("typed\n", str(tmp_path), {"s3": {"anon": True}}, False)
    expected = ["fsspec", "json", "os", "report", "sys", "tempfile", "variables"]
    assert [each for each in names if each[0] != "_"] == expected


def test_scripts_and_modules(begun: list[str], tmp_path: Path) -> None:
    """A script finds what lies beside it, and a module what lies in the folder."""
    (tmp_path / "beside.py").write_text("HERE = 'here'")
    (tmp_path / "mine.py").write_text("import sys, beside; print(__name__, beside.HERE, *sys.argv)")
    path = str(tmp_path / "mine.py")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    assert ended([*begun, path, "x"], cwd="/", env=environment).stdout == f"__main__ here {path} x\n"
    assert ended([*begun, "-m", "mine", "x"], cwd=tmp_path, env=environment).stdout == f"__main__ here {path} x\n"
    assert sorted(os.listdir(tmp_path)) == ["beside.py", "home", "mine.py"]


def test_ends(begun: list[str]) -> None:
    """At its end it waits for its threads, runs what was registered, frees its objects, and has its status."""
    done = ended([*begun, "-c", ENDING])
    assert (done.returncode, done.stdout, done.stderr) == (7, "end thread atexit freed", "")


def test_raises(begun: list[str]) -> None:
    """An uncaught exception ends it with a traceback."""
    done = ended([*begun, "-c", "raise LookupError('lost')"])
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("\nLookupError: lost\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_signals(begun: list[str], number: signal.Signals) -> None:
    """A signal ends it as it ends every process of Python, and nothing of it is left."""
    with running([*begun, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(number)
        output, errors = process.communicate(timeout=100)
    assert (process.returncode, output) == (-number, "")
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    for _ in range(1000):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("It is there still.")


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGINT], ids=lambda number: number.name)
def test_ends_itself(begun: list[str], number: signal.Signals) -> None:
    """The signal by which it ended is reported."""
    assert ended([*begun, "-c", f"import os; os.kill(os.getpid(), {number:d})"]).returncode == -number
