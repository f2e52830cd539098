"""The filter that redacts secrets changes nothing else in logging, and raises no errors."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fsspec_csx.redaction import redact_logs

SECRET = "SecretAccessKey: wJalrXUtnFEMIK7MDENG"
SHOWN = "wJalrXUtnFEMIK7MDENG"


class Unprintable:
    """Has neither a text nor a repr."""

    def __str__(self) -> str:
        msg = "no text"
        raise ValueError(msg)

    __repr__ = __str__


class StrangeError(Exception):
    """An exception without a text."""

    def __str__(self) -> str:
        msg = "no text"
        raise ValueError(msg)


Log = Callable[..., str]


@pytest.fixture(params=["urllib3", "nobodys"])
def log(request: pytest.FixtureRequest) -> Log:
    """Log by a logger that is watched, and by one that is not; returns what a handler wrote."""

    def write(message: Any, *arguments: Any, **options: Any) -> str:
        return logged(request.param, message, *arguments, **options)

    return write


def logged(name: str, message: Any, *arguments: Any, exc_info: Any = None) -> str:
    """What a handler writes of a record, as logging makes and passes it; pytest's own handler would raise."""
    redact_logs()
    logger, output = logging.getLogger(name), io.StringIO()
    record = logger.makeRecord(name, logging.WARNING, __file__, 1, message, arguments, exc_info)
    if logger.filter(record):
        logging.StreamHandler(output).handle(record)
    return output.getvalue()


MALFORMED: list[tuple[Any, tuple[Any, ...]]] = [
    ("%d", ("x",)),
    ("%d %d", (1,)),
    ("no place", (1, 2)),
    ("%(name)s", (1,)),
    ("%(name)s", ({"other": 1},)),
    ("%s", (Unprintable(),)),
    (Unprintable(), ()),
    ("%", (1,)),
    ("%y", (1,)),
]
FINE: list[tuple[Any, tuple[Any, ...], str]] = [
    ("plain", (), "plain"),
    ("100%", (), "100%"),
    ("%s and %s", (1, None), "1 and None"),
    ("%(name)s", ({"name": 1},), "1"),
    (42, (), "42"),
    (None, (), "None"),
    (ValueError("what"), (), "what"),
    (["a"], (), "['a']"),
    (b"bytes", (), "b'bytes'"),
]


@pytest.mark.parametrize(("message", "arguments"), MALFORMED)
def test_malformed_record(
    log: Log, capsys: pytest.CaptureFixture[str], message: Any, arguments: tuple[Any, ...]
) -> None:
    """A record that cannot be formatted is reported on stderr by logging itself, and the program continues."""
    assert log(message, *arguments) == ""
    assert "--- Logging error ---" in capsys.readouterr().err


@pytest.mark.parametrize(("message", "arguments", "expected"), FINE)
def test_odd_record(log: Log, message: Any, arguments: tuple[Any, ...], expected: str) -> None:
    """What logging takes as a message is shown as logging shows it."""
    assert log(message, *arguments) == f"{expected}\n"


@pytest.mark.parametrize("info", [(1, 2), (None, None, None), (ValueError, None, None), ("a", "b", "c")])
def test_odd_exception(log: Log, capsys: pytest.CaptureFixture[str], info: Any) -> None:
    """Nor does what is given as an exception raise one."""
    assert "message" in log("message", exc_info=info) + capsys.readouterr().err


def test_exception_without_text(log: Log) -> None:
    """An exception whose text cannot be had is logged by its name."""
    try:
        raise StrangeError
    except StrangeError:
        written = log("failed", exc_info=sys.exc_info())
    assert written.startswith("failed")
    assert "StrangeError" in written


@pytest.mark.parametrize(
    ("message", "arguments"),
    [("%d", (SECRET,)), (f"{SECRET} %d", ("x",)), ("%d", ({"SecretAccessKey": SHOWN},)), ("%(a)d", ({"a": SECRET},))],
)
def test_secret_in_a_malformed_record(
    capsys: pytest.CaptureFixture[str], message: str, arguments: tuple[Any, ...]
) -> None:
    """What logging reports of such a record shows no secret either."""
    assert logged("urllib3", message, *arguments) == ""
    error = capsys.readouterr().err
    assert "--- Logging error ---" in error
    assert SHOWN not in error


def test_secret_in_an_exception() -> None:
    """A traceback is blotted, also where the message beside it is malformed."""
    redact_logs()
    record = logging.LogRecord("urllib3", logging.ERROR, "", 1, "%d", ("x",), None)
    try:
        raise ValueError(SECRET)
    except ValueError:
        record.exc_info = sys.exc_info()
    assert logging.getLogger("urllib3").filter(record)
    assert record.exc_text is not None
    assert "ValueError" in record.exc_text
    assert SHOWN not in record.exc_text


def test_program_that_logs() -> None:
    """In a program of its own, too, a malformed record of a watched logger is none of the caller's concern."""
    program = """
import logging, fsspec_csx.redaction
fsspec_csx.redaction.redact_logs()
logging.basicConfig()
logging.getLogger("urllib3").warning("%d", "x")
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    assert ended.stdout == "done\n"
    assert "--- Logging error ---" in ended.stderr
