"""cszoo checkpoint copy and move: arguments, output and exit status."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from checkpoints import MIB
from commands import DONE, FAILED, USAGE, cszoo, failure, running, terminal
from forked import python
from proxy import Fault, fault_proxy

from fsspec_csx.cli import main
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

DATA = os.urandom(10 * MIB)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two checkpoints."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "a_1.mdl").write_bytes(b"one")
    (folder / "a_10.mdl").write_bytes(b"ten")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def remote(environment: LocalS3) -> str:
    """The URL of a folder of the test's own."""
    return f"s3://copies/{uuid.uuid4().hex[:12]}"


def held(fs: CSXFileSystem, url: str) -> dict[str, bytes]:
    """The objects below a folder."""
    return {name.rpartition("/")[2]: fs.cat_file(name) for name in fs.find(url, refresh=True)}


def test_up_and_down_in_processes(here: Path, remote: str, fs: CSXFileSystem) -> None:
    """The command as it is typed: up, down, and what it prints, with --json too."""
    up = cszoo("copy", "a_1.mdl", "a_10.mdl", f"{remote}/")
    assert (up.returncode, up.stderr) == (DONE, "")
    lines = [f"Copied checkpoint from {name} to {remote}/{name}" for name in ("a_1.mdl", "a_10.mdl")]
    assert up.stdout.splitlines() == lines
    down = cszoo("move", f"{remote}/a_1.mdl", "b.mdl", "--json")
    assert json.loads(down.stdout) == {"moved": [{"source": f"{remote}/a_1.mdl", "target": "b.mdl", "bytes": 3}]}
    assert (here / "b.mdl").read_bytes() == b"one"
    assert held(fs, remote) == {"a_10.mdl": b"ten"}


@pytest.mark.parametrize("quiet", [True, False])
def test_what_is_printed(here: Path, capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    """A line for each checkpoint, none with --quiet."""
    assert main(["checkpoint", "move", "a_1.mdl", "a_10.mdl", "new/", *(["-q"] if quiet else [])]) == DONE
    report = "".join(f"Moved checkpoint from {name} to new/{name}\n" for name in ("a_1.mdl", "a_10.mdl"))
    assert capsys.readouterr() == ("" if quiet else report, "")
    assert sorted(path.name for path in (here / "new").iterdir()) == ["a_1.mdl", "a_10.mdl"]
    assert sorted(path.name for path in here.iterdir()) == ["new"]


def test_patterns(here: Path, remote: str, fs: CSXFileSystem, capsys: pytest.CaptureFixture[str]) -> None:
    """A quoted pattern is expanded, up and down, and needs a folder to go to."""
    (here / "a_[1].mdl").write_bytes(b"brackets")
    assert main(["checkpoint", "copy", "a_*.mdl", f"{remote}/", "-q"]) == DONE
    assert held(fs, remote) == {"a_1.mdl": b"one", "a_10.mdl": b"ten", "a_[1].mdl": b"brackets"}
    (here / "down").mkdir()
    assert main(["checkpoint", "move", f"{remote}/a_?.mdl", f"{remote}/a_[1].mdl", "down", "-q"]) == DONE
    assert sorted(path.name for path in (here / "down").iterdir()) == ["a_1.mdl", "a_[1].mdl"]
    assert held(fs, remote) == {"a_10.mdl": b"ten"}
    assert main(["checkpoint", "copy", f"{remote}/a_*", "b.mdl"]) == FAILED
    assert "is a pattern" in capsys.readouterr().err
    assert main(["checkpoint", "copy", f"{remote}/c_*", "down"]) == FAILED
    assert "No checkpoint matches" in capsys.readouterr().err


def test_sources_of_one_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sources that would replace each other are refused before anything is copied."""
    (here / "other").mkdir()
    (here / "other" / "a_1.mdl").write_bytes(b"other")
    assert main(["checkpoint", "copy", "a_1.mdl", "other/a_1.mdl", "new/"]) == FAILED
    assert "Several sources have the name a_1.mdl" in capsys.readouterr().err
    assert not (here / "new").exists()


@pytest.mark.parametrize("arguments", [[], ["a_1.mdl"], ["a_1.mdl", "a_10.mdl", "b.mdl"], ["--forc", "a_1.mdl", "b"]])
@pytest.mark.parametrize("verb", ["copy", "move"])
def test_wrong_usage(here: Path, verb: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is reported, and does nothing."""
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", verb, *arguments])
    assert left.value.code == USAGE
    assert "usage: cszoo" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["a_1.mdl", "a_10.mdl"]


@pytest.mark.slow
def test_failures_in_processes(here: Path, remote: str, server: LocalS3) -> None:
    """Each failure is a line with the cause and one with the remedy, without a secret."""
    wrong = {"AWS_SECRET_ACCESS_KEY": "no-such-secret-0123456789"}
    cause, remedy = failure(cszoo("copy", "a_1.mdl", f"{remote}/x.mdl", environment=wrong))
    assert "does not accept" in cause
    assert "secret" in remedy
    assert "no-such-secret" not in cause + remedy
    nobody = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    cause, remedy = failure(cszoo("move", "a_1.mdl", f"{remote}/x.mdl", environment=nobody))
    assert "No S3 credentials were found" in cause
    cause, remedy = failure(cszoo("copy", "a_1.mdl", f"{remote}/x.mdl", "--endpoint-url", "http://127.0.0.1:9"))
    assert "http://127.0.0.1:9 cannot be reached" in cause
    assert "Check the address" in remedy


@pytest.mark.parametrize(
    ("arguments", "cause", "remedy"),
    [
        (["missing.mdl", "b.mdl"], "There is no checkpoint missing.mdl.", "Check its name."),
        (["a_1.mdl", "a_10.mdl"], "a_10.mdl exists already.", "--force"),
        (["a_1.mdl", "a_1.mdl", "-f"], "the source file", "Name another target."),
        (["folder", "b"], "folder is a folder, but not a checkpoint.", "Name the checkpoints in it."),
        (["a_1.mdl", "a_10.mdl/x"], "Not a directory", "one of its folders is a file"),
        (["a_1.mdl", "s3://"], "lacks the object path", "Give bucket and object path"),
        (["a_1.mdl", "s3://only-a-bucket"], "lacks the object path", "Give bucket and object path"),
    ],
)
@pytest.mark.parametrize("verb", ["copy", "move"])
def test_failures(
    here: Path, verb: str, arguments: list[str], cause: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each failure is a line with the cause and one with the remedy, and changes nothing."""
    (here / "folder").mkdir()
    assert main(["checkpoint", verb, *arguments]) == FAILED
    first, second = capsys.readouterr().err.splitlines()
    assert cause in first
    assert remedy in second
    assert sorted(path.name for path in here.iterdir()) == ["a_1.mdl", "a_10.mdl", "folder"]
    assert (here / "a_1.mdl").read_bytes() == b"one"


@pytest.fixture(scope="module")
def other() -> Iterator[LocalS3]:
    """A second server."""
    with LocalS3() as running:
        yield running


def test_profiles_of_each_side(
    here: Path, server: LocalS3, other: LocalS3, aws_files: Path, fs: CSXFileSystem, capsys: pytest.CaptureFixture[str]
) -> None:
    """Source and target have their own profiles and endpoints; one that is given for both is of both."""
    sections = "".join(
        f"[{name}]\naws_access_key_id = {one.identity.access_key}\naws_secret_access_key = {one.identity.secret_key}\n"
        for name, one in (("here", server), ("there", other))
    )
    (aws_files / "credentials").write_text(sections)
    (aws_files / "config").write_text(f"[profile here]\nendpoint_url = {server.endpoint_url}\n")
    key = f"copies/{uuid.uuid4().hex}.mdl"
    both = ["--source-profile", "here", "--dest-profile", "there", "--dest-endpoint-url", other.endpoint_url]
    assert main(["checkpoint", "copy", "-p", "here", "a_1.mdl", f"s3://{key}"]) == DONE
    assert main(["checkpoint", "move", *both, f"s3://{key}", f"s3://{key}"]) == DONE
    assert not fs.exists(key)
    there = fsspec.filesystem("s3", **other.storage_options())
    assert there.cat_file(key) == b"one"
    back = ["--source-profile", "there", "--source-endpoint-url", other.endpoint_url]
    assert main(["checkpoint", "copy", *back, f"s3://{key}", "back.mdl"]) == DONE
    assert main(["checkpoint", "copy", *back, f"simplecache::s3://{key}", "cached.mdl"]) == DONE
    assert (here / "back.mdl").read_bytes() == (here / "cached.mdl").read_bytes() == b"one"
    assert "s3://" in capsys.readouterr().out


@pytest.mark.slow
def test_bar(here: Path, remote: str, fs: CSXFileSystem, server: LocalS3) -> None:
    """On a terminal a copy that lasts shows bytes, rate and the time that is left; --quiet shows nothing."""
    (here / "x.mdl").write_bytes(DATA)
    with fault_proxy(server.endpoint_url) as proxy:
        for quiet in (False, True):
            proxy.faults = [Fault("PUT", query="partNumber=2", delay=2.0)]
            ours, theirs = terminal()
            command = [*python(), "-m", "fsspec_csx", "checkpoint", "copy", "--endpoint-url", proxy.url]
            command += ["x.mdl", f"{remote}/{quiet}.mdl", *(["--quiet"] if quiet else [])]
            environment = {**os.environ, "AWS_ENDPOINT_URL_S3": proxy.url}
            with running(command, stderr=theirs, stdout=subprocess.DEVNULL, env=environment) as process:
                os.close(theirs)
                shown = b"".join(_pieces(ours))
                assert process.wait(60) == DONE, shown
            text = shown.decode()
            assert ("10.0M/10.0M" in text, "B/s" in text, "x.mdl" not in text) == (not quiet, not quiet, True), text
            assert fs.cat_file(f"{remote}/{quiet}.mdl") == DATA


def _pieces(terminal: int) -> Iterator[bytes]:
    """What a terminal shows, until its other end is closed."""
    try:
        while piece := os.read(terminal, 4096):
            yield piece
    except OSError:  # how the end of a terminal is reported
        pass
    finally:
        os.close(terminal)


def test_in_a_thread(here: Path) -> None:
    """The command works in a thread too, where no signals can be handled."""
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(main(["checkpoint", "copy", "a_1.mdl", "b.mdl", "-q"])))
    thread.start()
    thread.join()
    assert status == [DONE]
    assert (here / "b.mdl").read_bytes() == b"one"
