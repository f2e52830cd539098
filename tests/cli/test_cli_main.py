"""cszoo itself: usage, help, completion, error messages and exit status."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec.config
import pytest
from commands import FAILED, USAGE, cszoo

from fsspec_csx import save
from fsspec_csx.cli.errors import format_error
from fsspec_csx.cli.main import INTERRUPTED, main, parser
from fsspec_csx.cli.output import emit, in_bytes, table
from fsspec_csx.errors import NoCredentialsError
from fsspec_csx.settings import backends


def verbs() -> list[str]:
    """The verbs of ``cszoo checkpoint``."""
    noun = next(action for action in parser()._actions if action.metavar == "COMMAND").choices["checkpoint"]
    return list(next(action for action in noun._actions if action.metavar == "VERB").choices)


# -- usage and help ----------------------------------------------------------------------------------------------------


def test_verbs() -> None:
    """Every verb that there is."""
    named = "copy move list info diff verify delete convert gc prune doctor"
    assert sorted(verbs()) == sorted(named.split())


def test_help_without_docstrings() -> None:
    """Under ``python -OO`` the help of a verb says in a few words what it does."""
    code = "from fsspec_csx.cli import main; main(['checkpoint', 'delete', '--help'])"
    shown = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True).stdout
    assert "\ndelete checkpoints\n" in shown
    assert "examples:" not in shown


@pytest.mark.parametrize("verb", verbs())
def test_help_has_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of a verb shows how it is used, and every example can be parsed."""
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", verb, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    examples = [line.split() for line in shown.splitlines() if line.startswith("  cszoo checkpoint ")]
    assert examples
    for example in examples:
        assert parser().parse_args([word.strip("'") for word in example[1:]]).run
    for option in ("--profile", "--endpoint-url", "--quiet", "--json", "--debug"):
        assert option in shown


def test_second_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command is also fsspec-csx, and its help says so under this name."""
    scripts = importlib.metadata.entry_points(group="console_scripts")
    assert {"cszoo", "fsspec-csx"} <= {each.name for each in scripts if each.value == "fsspec_csx.cli:main"}
    monkeypatch.setattr(sys, "argv", ["/usr/bin/fsspec-csx"])
    with pytest.raises(SystemExit):
        main(["checkpoint", "copy", "--help"])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: fsspec-csx checkpoint copy")
    assert "  fsspec-csx checkpoint copy model.mdl" in shown


def test_starts_light() -> None:
    """The help of all verbs needs neither torch nor s3fs."""
    check = (
        "import sys; from fsspec_csx.cli.main import parser; parser().format_help(); "
        "sys.exit(bool({'torch', 's3fs', 'aiobotocore', 'botocore', 'tqdm'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=100)


def test_wrong_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    """A value that is no number, or outside the limits, is wrong usage; the message has the value and the limits."""
    for option in ("--rtol=abc", "--atol=-1", "--atol=nan"):
        with pytest.raises(SystemExit):
            main(["checkpoint", "diff", "a", "b", option])
        name, _, value = option.partition("=")
        assert f"argument {name}: '{value}' is not a number of 0 or more" in capsys.readouterr().err
    for seconds in ("abc", "0", "3601"):
        with pytest.raises(SystemExit):
            main(["checkpoint", "doctor", "--seconds", seconds])
        assert f"'{seconds}' is not a number between 1 and 3600" in capsys.readouterr().err


def test_closed_streams(tmp_path: Path) -> None:
    """Without stdin, stdout or stderr the command works, and asks no question; an error does not go to stdout."""
    (tmp_path / "a.pt").write_bytes(b"data")

    def run(closed: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fsspec_csx", "checkpoint", *words]
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
        return subprocess.run(shell, capture_output=True, text=True, timeout=90, check=False, cwd=tmp_path)

    assert run("<&- >&- 2>&-", "copy", "a.pt", "b.pt").returncode == 0
    assert (tmp_path / "b.pt").read_bytes() == b"data"
    refused = run("<&-", "delete", "b.pt")
    assert refused.returncode == FAILED
    assert "stdin is not a terminal" in refused.stderr
    failed = run("2>&-", "copy", "c.pt", "d.pt")
    assert (failed.returncode, failed.stdout) == (FAILED, "")


def test_other_encodings(tmp_path: Path) -> None:
    """What a terminal cannot show is escaped, and JSON is ASCII; neither is an error after the work is done."""
    (tmp_path / "a.pt").write_bytes(b"data")
    for words in (("copy", "a.pt", "ä.pt"), ("list", "."), ("list", ".", "--json")):
        command = [sys.executable, "-m", "fsspec_csx", "checkpoint", *words]
        environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, capture_output=True, timeout=90, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        assert (r"\u00e4.pt" if "--json" in words else r"\xe4.pt").encode() in done.stdout


def test_abbreviations_are_wrong_usage() -> None:
    """An option that is cut short is not guessed: --for is not --force."""
    with pytest.raises(SystemExit) as left:
        main(["checkpoint", "copy", "a", "b", "--for"])
    assert left.value.code == USAGE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The completions of each shell know the verbs, and the shell can read them where there is one."""
    with pytest.raises(SystemExit) as left:
        main(["--print-completion", shell])
    assert left.value.code == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in verbs())
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([program, "-n", str(tmp_path / "script")], check=True, timeout=100)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(tmp_path: Path) -> None:
    """bash completes verbs and options."""
    script = subprocess.run(
        [sys.executable, "-m", "fsspec_csx", "--print-completion", "bash"], capture_output=True, check=True, timeout=100
    ).stdout
    (tmp_path / "script").write_bytes(script)
    for words, expected in (("cszoo checkpoint cop", "copy"), ("cszoo checkpoint copy --end", "--endpoint-url")):
        lines = [
            f"source {tmp_path / 'script'}",
            f"COMP_WORDS=({words})",
            "COMP_CWORD=$((${#COMP_WORDS[@]} - 1))",
            "function=$(complete -p cszoo | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
            "$function cszoo ${COMP_WORDS[$COMP_CWORD]} ${COMP_WORDS[$COMP_CWORD - 1]}",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
        done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True, timeout=100)
        assert expected in done.stdout.split()


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "cause", "remedy"),
    [
        (NoCredentialsError("There are none.", "Set some."), "There are none.", "Set some."),
        (NoCredentialsError("There\nare none."), "There are none.", None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "/x: No such file", "Check the path."),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.", "Free some space"),
        (ValueError("It is too long. Cut it."), "It is too long.", "Cut it."),
        (OSError("broken"), "broken", "--debug"),
        (KeyError("x"), "KeyError: 'x'", "--debug"),
        (OSError(), "OSError", "--debug"),
        (MemoryError(), "MemoryError", "Free memory"),
        (FileNotFoundError("ftp://me:pass@host/x"), "ftp://me:***@host/x", "Check the path."),
    ],
)
def test_cause_and_remedy(error: Exception, cause: str, remedy: str | None) -> None:
    """An error is reported as a line of cause and one of remedy, whatever its kind."""
    lines = format_error(error).splitlines()
    assert lines[0].startswith(f"cszoo: {cause}")
    assert not lines[0].endswith((":", ": "))
    assert len(lines) == 1 + (remedy is not None)
    if remedy is not None:
        assert remedy in lines[1]


@pytest.mark.parametrize("debug", [True, False])
def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str], debug: bool) -> None:
    """Only --debug shows where an error came from; cause, remedy and exit status are the same."""
    arguments = ["checkpoint", "copy", str(tmp_path / "missing"), str(tmp_path / "y")]
    assert main([*arguments, *["--debug"] * debug]) == FAILED
    shown = capsys.readouterr().err
    assert ("Traceback" in shown) == ("copy.py" in shown) == debug
    assert "\ncszoo: " in f"\n{shown}"
    assert shown.endswith("Check its name.\n")


# -- how it ends -------------------------------------------------------------------------------------------------------


def run_instead(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Let the command do something else than what its arguments say."""
    options = SimpleNamespace(run=run, profile="work", endpoint_url="http://127.0.0.1:9", debug=False)
    monkeypatch.setattr(
        sys.modules[main.__module__], "parser", lambda: SimpleNamespace(parse_args=lambda arguments: options)
    )


def test_settings_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profile and endpoint hold for the command alone."""

    def run(options: object) -> None:
        assert backends.csx.storage.s3.profile == "work"
        assert fsspec.config.conf["s3"] == {"anon": False, "endpoint_url": "http://127.0.0.1:9"}

    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": False})
    run_instead(monkeypatch, run)
    assert main() == 0
    assert backends.csx.storage.s3.profile is None
    assert fsspec.config.conf["s3"] == {"anon": False}


def test_full_disk_of_the_log(tmp_path: Path) -> None:
    """A command that can print neither its result nor its error has failed; it has not found a difference."""
    save([1], tmp_path / "x.mdl")
    with open("/dev/full", "w") as full:
        for name in ("x.mdl", "missing.mdl"):
            assert (
                cszoo("verify", str(tmp_path / name), capture_output=False, stdout=full, stderr=full).returncode
                == FAILED
            )


@pytest.fixture
def terminal() -> Iterator[None]:
    """A terminal that may be closed: SIGHUP is not ignored, even if ``nohup`` runs the suite."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("terminal")
def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the command as shells expect it, without a traceback."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        status = 128 + number

        def run(options: object, number: int = number) -> None:
            os.kill(os.getpid(), number)
            time.sleep(5)

        run_instead(monkeypatch, run)
        if number == signal.SIGINT:
            assert main() == status == INTERRUPTED
        else:
            with pytest.raises(SystemExit) as left:
                main()
            assert left.value.code == status
    assert capsys.readouterr().err == "cszoo: interrupted\n"
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.usefixtures("terminal")
def test_closed_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP may come again during the cleanup, and means nothing to a command that ``nohup`` runs."""
    cleaned = []

    def run(options: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned.append(True)

    run_instead(monkeypatch, run)
    with pytest.raises(SystemExit):
        main()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert main() == 0
    assert cleaned == [True, True]


@pytest.mark.slow
def test_a_reader_that_leaves(tmp_path: Path) -> None:
    """``cszoo … | head`` ends without a complaint."""
    for number in range(3000):
        (tmp_path / f"checkpoint_{number}.mdl").write_bytes(b"x")
    command = f"{sys.executable} -m fsspec_csx checkpoint list {tmp_path} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


# -- output ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**20 - 1, "1.0 MiB"), (3 * 2**30 // 2, "1.5 GiB")],
)
def test_sizes(size: int, text: str) -> None:
    """Sizes are reported in the unit that is easiest to read."""
    assert in_bytes(size) == text


def test_tables() -> None:
    """Columns are as wide as their widest cell."""
    assert table([["a", "10"], ["bcd", "9"]], right=[1]) == ["a    10", "bcd   9"]
    assert table([]) == []


def test_json_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    """What JSON does not know is reported as text."""
    emit(SimpleNamespace(json=True), {"a": float("nan"), "b": (1, None, Path("x")), 3: "ä"}, [])  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out) == {"a": "nan", "b": [1, None, "x"], "3": "ä"}
