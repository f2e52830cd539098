"""The benchmark has every requested row, and its peers load what they save; no test depends on times."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import compare
import goals
import pytest
import rounds
import sections
from cases import Case, difference
from measure import Launcher, Result, Task, run
from peers import PEERS, Peer
from plot import as_svg
from report import Gap, Report, Run
from sections import SECTIONS, Section
from servers import fill, running, target_of
from table import as_markdown, as_text
from target import Target

from fsspec_csx.testing import LocalS3

CASE = Case("large", tensors=2, size=2**20)
MIXED = Case("mixed", tensors=24, size=2**12, mixed=True)
HERE = ("ours", "ours-stream", "ours-open", "s3fs", "sockets", "ours-safetensors", "s3fs-safetensors")
WITH_NGINX = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None, reason="nginx is not installed"
)


@pytest.fixture(scope="module")
def target(server: LocalS3) -> Target:
    """The server of the suite, with the cases to load."""
    made = target_of(server)
    fill(made, [CASE, MIXED], ["torch", "safetensors", "raw"])
    return made


def report_of(*cases: Case, servers: tuple[str, ...] = ("local",)) -> Report:
    """A report without measurements."""
    named = {case.name: (str(case), case.nbytes) for case in cases}
    return Report({"runs": "1"}, named, {server: server for server in servers})


@pytest.fixture
def moody() -> Report:
    """Two rounds, of which the second was ten times as slow for all, and s3fs alone lucky in a third."""
    report = report_of(CASE)
    for number, mood in enumerate((1.0, 10.0)):
        for operation in ("save", "load"):
            report.runs.append(Run("local", "large", operation, "ours", number, 1 * mood, 0.5 * mood, 2**20, 3))
            report.runs.append(Run("local", "large", operation, "s3fs", number, 6 * mood, 1.0 * mood, 2**27, 9))
    report.runs.append(Run("local", "large", "load", "s3fs", 2, 0.1, 0.1))
    report.gaps.append(Gap("local", "obstore", "not installed"))
    return report


@pytest.mark.slow
def test_every_row_is_there_and_checked(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each peer has numbers for saving and loading, and what it loads is what was saved."""
    asked: list[Task] = []

    def in_here(task: Task) -> Result:  # a process for each takes seconds
        asked.append(task)
        return run(task)

    monkeypatch.setattr(rounds, "Launcher", launching(in_here))
    report = report_of(MIXED)
    rounds.measure(rounds.Plan(HERE, (MIXED,), runs=1), target, report)
    assert report.gaps == []
    for operation in ("save", "load"):
        for name in HERE:
            if operation == "load" or operation not in PEERS[name].lacks:
                assert report.row("local", "mixed", operation, name).seconds, (operation, name)
    assert all(task.check for task in asked)
    assert set(report.settings) == set(HERE)


@pytest.mark.slow
def test_process_measures_or_returns_its_error(target: Target) -> None:
    """A measurement works in a process of its own, and an error in it comes back as a line."""
    missing = Case("missing", tensors=1, size=4)
    with Launcher(target) as launcher:
        found = launcher.run(Task("ours", "load", CASE, target, check=True))
        assert (found.error, found.requests) == (None, None)
        assert found.page_faults
        assert "NotFoundError" in str(launcher.run(Task("ours", "load", missing, target)).error)
        assert launcher.run(Task("ours", "load", CASE, target, check=True)).error is None


def test_check_sees_what_is_not_as_saved(target: Target) -> None:
    """A checkpoint that is loaded otherwise than it was saved is an error, and not a measurement."""
    other = Case("large", tensors=2, size=2**19)
    assert "instead of torch.float32 (131072,)" in str(run(Task("s3fs", "load", other, target, check=True)).error)


@pytest.mark.slow
@WITH_NGINX
@pytest.mark.parametrize(("peer", "saves", "loads"), [("sockets", 2, 2), ("s3fs-safetensors", 1, 2)])
def test_requests_are_counted_and_what_is_dropped_had_come(
    peer: str, saves: int, loads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx counts the requests of the measured part alone, and knows how much was put."""
    monkeypatch.setattr("target._LOG_SECONDS", 0.2)
    case = Case("large", tensors=2, size=9 * 2**20)
    with running("nginx", [case], [PEERS[peer].kind]) as target:
        saved = run(Task(peer, "save", case, target, check=True))
        loaded = run(Task(peer, "load", case, target, check=True))
        assert not target.has_received(4 * case.nbytes)
    assert (saved.error, saved.requests) == (None, saves)
    assert (loaded.error, loaded.requests) == (None, loads)


@pytest.mark.parametrize(("error", "status"), [("it broke", 1), (None, 0)])
def test_failure_is_shown_and_is_the_exit_status(
    error: str | None, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A peer that fails has its error in the output, one that is missing is listed, and only the first is a failure."""
    monkeypatch.setattr(compare, "running", _no_server)
    result = Result(1.0, 1.0, 0, settings="settings", error=error)
    monkeypatch.setattr(rounds, "Launcher", launching(lambda task: result))
    missing = Peer("missing", ("no_such_module",), lambda target: pytest.fail("connected"))
    monkeypatch.setitem(PEERS, "obstore", missing)
    found = tmp_path / "found.json"
    asked = ["--only", "s3fs", "obstore", "--rounds", "1", "--server", "nginx"]
    assert compare.main([*asked, "--json", str(found)]) == status
    printed = capsys.readouterr().out
    assert "not installed" in printed
    assert ("it broke" in printed) == bool(error)
    assert compare.main(["--from", str(found)]) == status
    assert capsys.readouterr().out == printed


def test_each_named_peer_is_measured() -> None:
    """``--only`` keeps peers of every form of checkpoint, in one section for each kind of operation."""
    found = {name for section in sections.asked(["local"], [], list(PEERS)) for name in section.peers}
    assert found == set(PEERS)


def test_missing_server_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without nginx the message says how to get it, and the exit status is 2."""
    monkeypatch.setattr("nginx.shutil.which", lambda *_, **__: None)
    assert compare.main(["--sections", "near"]) == 2
    assert "apt-get install nginx-light" in capsys.readouterr().err


def test_ratios_are_taken_within_a_round(moody: Report) -> None:
    """What slows a whole round changes no ratio, and a round without ours does not count."""
    row = moody.row("local", "large", "load", "s3fs")
    assert (row.faster, row.cpu, row.seconds) == (6.0, 0.5, 6.0)
    assert moody.row("local", "large", "load", "ours").faster is None


def test_goals_are_reported_by_the_numbers(moody: Report) -> None:
    """A row for each goal and server says what was reached, and whether that is enough; without numbers none."""
    assert goals.as_text(moody).endswith("none was measured")
    there = Report.from_json(moody.as_json().replace('"local"', '"nginx-tls"'))
    text = goals.as_text(there)
    assert "met     1.8 x s3fs, nginx-tls: load 6.00" in text
    assert "met     at most 64 MiB of extra memory, nginx-tls: save 1x1" not in text
    assert "sockets" not in text
    there.runs += [
        Run("nginx-tls", "large", "save", "sockets", 0, 2.0, 0.1),
        Run("nginx-tls", "large", "load", "sockets", 0, 0.5, 0.1),
    ]
    assert "MISSED  0.9 x ssl sockets, nginx-tls: save 2.00, load 0.50" in goals.as_text(there)
    assert "| 0.9 x ssl sockets | nginx-tls | **MISSED** | save 2.00, **load 0.50** |" in goals.as_markdown(there)


def test_part_of_a_case_counts_as_its_speed(moody: Report) -> None:
    """A peer that moved a part in an eighth of the time is as fast, and the table says what it moved."""
    moody.runs.append(Run("local", "large", "load", "obstore", 0, 0.125, 0.0625, share=0.125))
    moody.runs = [run for run in moody.runs if run.peer != "s3fs"]
    row = moody.row("local", "large", "load", "obstore")
    assert (row.faster, row.cpu, row.share) == (1.0, 1.0, 0.125)
    assert row.gb_per_second == pytest.approx(CASE.nbytes / 1e9)
    section = Section("asked", ("local",), (CASE,), ("ours", "obstore"))
    assert as_markdown(moody, section).endswith("¹ medians of 1, with 0.12 of the tensors.")


def test_estimate_grows_with_rounds_but_not_for_slow_peers() -> None:
    """After the first two rounds slow peers are left out, and large cases are cut for them alone."""
    far = next(section for section in SECTIONS if section.name == "far")
    plan = far.plan(5)
    (whole,) = plan.cases
    first, third = plan.tasks(0), plan.tasks(2)
    assert {name for _, _, name in first} - {name for _, _, name in third} >= {"s3fs", "boto3"} & set(plan.installed)
    assert plan.moved(whole, "load", "s3fs").nbytes * 8 == plan.moved(whole, "load", "ours").nbytes
    assert far.estimate(5) < 5 * far.estimate(1)


def test_tables_and_plot_are_made_again_from_json(moody: Report) -> None:
    """JSON keeps all that tables and plot need; the tables are even, and the plot has a bar for each number."""
    again = Report.from_json(moody.as_json())
    assert as_text(again) == as_text(moody)
    table = as_markdown(again, Section("asked", ("local",), (CASE,), tuple(HERE), ("cpu", "extra"))).splitlines()
    assert "Medians of 3." in table[0]
    assert len({line.count("|") for line in table[2:-2]}) == 1
    assert table[-1] == "¹ medians of 2."
    assert [line for line in table if "(6.0x)" in line]
    drawn = ElementTree.fromstring(as_svg(again))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}rect")) == 4


def test_readme_has_a_place_for_each_table(tmp_path: Path) -> None:
    """``--write`` puts each table where the README has its name, and leaves the others and the text as they are."""
    report = report_of(*(Case(case.name, 1, 4) for section in SECTIONS for case in section.cases))
    report.servers = {server: server for section in SECTIONS for server in section.servers}
    report.runs += [
        Run(server, case.name, operation, peer, 0, 1.0, 1.0, 0, 1)
        for section in SECTIONS
        if section.name != "tls"
        for server in section.servers
        for case in section.cases
        for operation in section.operations
        for peer in section.peers
    ]
    found = tmp_path / "found.json"
    found.write_text(report.as_json())
    assert compare.main(["--from", str(found), "--write", str(tmp_path)]) == 0
    before, after = compare._README.read_text(), (tmp_path / "README.md").read_text()
    assert (tmp_path / "speed.svg").exists()
    for name in (*(section.name for section in SECTIONS), "summary", "goals", "facts"):
        parts = [text.partition(f"<!-- {name} -->\n")[2].partition("<!-- end -->")[0] for text in (before, after)]
        assert (parts[0] == parts[1]) == (name == "tls"), name
    assert [line for line in before.splitlines() if line.startswith("#")] == [
        line for line in after.splitlines() if line.startswith("#")
    ]


@pytest.mark.slow
@WITH_NGINX
def test_ranks_share_a_checkpoint() -> None:
    """Two processes save, load what was saved by rows, and load columns of it, and find the right values."""
    case = Case("sharded", tensors=1, size=2**20)
    with running("nginx", [case], ["sharded"]) as target, Launcher(target) as launcher:
        for peer, operation in (("sharded", "save"), ("sharded", "columns"), ("sharded-s3fs", "save")):
            found = launcher.run(Task(peer, operation, case, target, check=True))
            assert (found.error, found.seconds > 0) == (None, True), (peer, operation)
            assert found.extra_bytes is not None


@pytest.mark.slow
@WITH_NGINX
def test_ranks_load_one_file() -> None:
    """Two processes load one file, once for both and each for itself, and find the right values."""
    case = Case("large", tensors=3, size=2**20)
    with running("nginx", [case], ["torch"]) as target, Launcher(target) as launcher:
        for peer in ("ours-once", "ours-each"):
            found = launcher.run(Task(peer, "load", case, target, check=True))
            assert (found.error, found.seconds > 0) == (None, True), peer


def test_one_bit_is_a_difference() -> None:
    """The check sees a changed value, a missing tensor and another plain value, however deep."""
    assert difference(MIXED.state(), MIXED.state()) is None
    changed = MIXED.state()
    changed["optimizer"]["state"][3]["exp_avg"].view(-1)[0] += 1
    assert "exp_avg" in str(difference(MIXED.state(), changed))
    missing = MIXED.state()
    del missing["model"]["layers.1.weight"]
    assert "names in model" in str(difference(MIXED.state(), missing))
    assert "4 instead of 3" in str(difference(MIXED.state(), {**MIXED.state(), "epoch": 4}))


def test_mixed_case_has_a_byte_and_what_was_asked() -> None:
    """The tensors of the mixed case reach from one byte to the given size, and it knows how much they are."""
    sizes = [tensor.untyped_storage().nbytes() for tensor in MIXED.flat().values()]
    assert (len(sizes), min(sizes), max(sizes), sum(sizes)) == (24, 1, 2**12, MIXED.nbytes)


def launching(run: Callable[[Task], Result]) -> Any:
    """A launcher that runs tasks in this process."""

    @contextlib.contextmanager
    def launcher(target: Target) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(run=run)

    return launcher


@contextlib.contextmanager
def _no_server(*_: Any) -> Iterator[Target]:
    yield Target("nginx", "http://127.0.0.1:1", "key", "secret")
