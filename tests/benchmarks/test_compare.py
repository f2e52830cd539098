"""The benchmark has every row that was asked for, and its peers load what they save; nothing about times."""

from __future__ import annotations

import json
from typing import Any

import compare
import pytest
from cases import Case, difference
from measure import Result, Task, in_process, run
from peers import PEERS, Peer
from servers import fill, target_of
from target import Target

from fsspec_csx.testing import LocalS3

CASE = Case("large", tensors=2, length=2**18)


@pytest.fixture(scope="module")
def target(server: LocalS3) -> Target:
    """The server of the suite, with the case to load."""
    made = target_of(server)
    fill(made, [CASE])
    return made


def test_every_row_is_there_and_verified(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each peer has a row for saving and one for loading, and one that cannot be measured says why."""
    monkeypatch.setattr(compare, "in_process", run)  # a process for each takes seconds
    rows, settings = compare.measure(compare.Plan(("ours", "s3fs", "sockets"), (CASE,), runs=1), target)
    assert [(row.operation, row.peer) for row in rows] == [
        (operation, peer) for operation in ("save", "load") for peer in ("ours", "s3fs", "sockets")
    ]
    for row in rows:
        if row.peer == "sockets":
            assert row.note.startswith("does not sign")
        else:
            assert (row.note, row.verified) == ("", "equal")
            assert row.seconds
    assert set(settings) == {"ours", "s3fs"}


def test_process_measures_or_tells_its_error(target: Target) -> None:
    """A measurement works in a process of its own, and an error in it comes back as a line."""
    assert in_process(Task("ours", "load", CASE, target)).error is None
    missing = Case("missing", tensors=1, length=1)
    assert "NotFoundError" in str(in_process(Task("ours", "load", missing, target)).error)


@pytest.mark.parametrize("form", ["table", "json"])
@pytest.mark.parametrize(("error", "status"), [("it broke", 1), (None, 0)])
def test_failure_is_shown_and_is_the_exit_status(
    form: str, error: str | None, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer that fails has its error in the output, one that is missing is listed, and only the first is a failure."""
    monkeypatch.setattr(compare, "running", _NoServer)
    monkeypatch.setattr(compare, "in_process", lambda task: Result(1.0, 1.0, 0, "settings", error))
    monkeypatch.setitem(PEERS, "obstore", Peer(("no_such_module",), lambda target: pytest.fail("connected")))
    asked = ["--only", "s3fs", "obstore", "--runs", "1", "--output", form]
    assert compare.main(asked) == status
    printed = capsys.readouterr().out
    assert "not installed" in printed
    assert ("it broke" in printed) == bool(error)
    if form == "json":
        assert len(json.loads(printed)["rows"]) == 8


def test_missing_server_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without nginx the message says how to get it, and the exit status is 2."""
    monkeypatch.setattr("nginx.shutil.which", lambda *_, **__: None)
    assert compare.main(["--server", "nginx"]) == 2
    assert "apt-get install nginx-light" in capsys.readouterr().err


def test_one_bit_is_a_difference() -> None:
    """Verification sees a changed value and a missing tensor."""
    state = CASE.state()
    changed = CASE.state()
    changed["layers.1.weight"][3] += 1e-3
    assert difference(state, CASE.state()) is None
    assert "layers.1.weight" in str(difference(state, changed))
    del changed["layers.1.weight"]
    assert "names" in str(difference(state, changed))


class _NoServer:
    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Any:
        return Target("nginx", "http://127.0.0.1:1", "key", "secret")

    def __exit__(self, *_: object) -> None:
        pass
