"""cszoo checkpoint diff: what it prints, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from broken import begin_of, flip
from commands import DIFFERENT, DONE, FAILED, USAGE, cszoo, failure

from fsspec_csx.checkpoint.api import save
from fsspec_csx.cli import main
from fsspec_csx.testing import LocalS3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with checkpoints that differ."""
    state = {"w": torch.arange(8.0), "i": torch.arange(3), "step": 1, "old": None}
    save(state, tmp_path / "a.mdl")
    save(state, tmp_path / "same.mdl")
    state |= {"w": state["w"] * (1 + 2**-10), "i": state["i"] + 2**40, "step": 2, "new": "x"}
    del state["old"]
    save(state, tmp_path / "b.mdl")
    return tmp_path


def run(*arguments: str) -> int:
    """The exit status of the verb."""
    return main(["checkpoint", "diff", *arguments])


def test_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each difference, and one with their number."""
    assert run(f"{folder}/a.mdl", f"{folder}/b.mdl") == DIFFERENT
    report = capsys.readouterr()
    assert report.out.splitlines() == [
        "w: 7 of 8 elements differ, by at most 0.00683594 (relative: 0.00097561)",
        "i: 3 of 3 elements differ, by at most 1099511627776 (relative: 1)",
        "step: value 1 and 2",
        "old: only in the first (None)",
        "new: only in the second ('x')",
        "Found 5 differences.",
    ]
    assert report.err == ""


def test_equal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal checkpoints match, and --quiet says nothing of it."""
    assert run(f"{folder}/a.mdl", f"{folder}/same.mdl") == DONE
    assert capsys.readouterr().out == "Checkpoints match: 2 tensors and 2 other values.\n"
    assert run(f"{folder}/a.mdl", f"{folder}/same.mdl", "-q") == DONE
    assert capsys.readouterr().out == ""
    assert run(f"{folder}/a.mdl", f"{folder}/b.mdl", "-q") == DIFFERENT
    assert capsys.readouterr().out.endswith("Found 5 differences.\n")


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints a list; numbers that JSON lacks are text."""
    assert run(f"{folder}/a.mdl", f"{folder}/same.mdl", "--json") == DONE
    assert json.loads(capsys.readouterr().out) == []
    save({"w": torch.tensor([0.0, float("nan")])}, folder / "nan.mdl")
    save({"w": torch.tensor([1.0, 1.0])}, folder / "one.mdl")
    assert run(f"{folder}/one.mdl", f"{folder}/nan.mdl", "--json") == DIFFERENT
    (report,) = json.loads(capsys.readouterr().out)
    wanted = {"name": "w", "what": "value", "elements": 2, "total": 2, "absolute": "nan", "relative": "nan"}
    assert report == {**wanted, "first": None, "second": None}


@pytest.mark.parametrize("option", ["--tensor_comparison_op", "--tensor-comparison-op"])
def test_allclose(folder: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Tolerances are those of allclose, which a tolerance alone names too; whole numbers have none."""
    arguments = [f"{folder}/a.mdl", f"{folder}/b.mdl", option, "allclose", "--rtol", "0.01"]
    assert run(*arguments) == DIFFERENT
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()][:2] == ["i", "step"]
    save({"w": torch.ones(1)}, folder / "c.mdl")
    save({"w": torch.ones(1) + 1e-3}, folder / "d.mdl")
    assert run(f"{folder}/c.mdl", f"{folder}/d.mdl", option, "allclose") == DIFFERENT
    assert run(f"{folder}/c.mdl", f"{folder}/d.mdl", "--atol", "0.01") == DONE
    assert run(f"{folder}/c.mdl", f"{folder}/d.mdl", option, "equal") == DIFFERENT


@pytest.mark.parametrize(
    "arguments",
    [
        ["x"],
        ["x", "y", "--tensor_comparison_op", "close"],
        ["x", "y", "--rtol", "-1"],
        ["x", "y", "--atol", "nan"],
        ["x", "y", "--rtol", "much"],
        ["x", "y", "--tensor_comparison_op", "equal", "--rtol", "0.1"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is reported before anything is opened."""
    with pytest.raises(SystemExit) as left:
        run(*arguments)
    assert left.value.code == USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_names_that_a_terminal_cannot_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name with line feeds or escapes is printed in quotes, and so is an empty one."""
    save({"a\nb\x1b[2J": 1}, tmp_path / "a.mdl")
    save({}, tmp_path / "b.mdl")
    assert run(f"{tmp_path}/a.mdl", f"{tmp_path}/b.mdl") == DIFFERENT
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(r"'a\nb\x1b[2J': ")


def test_failures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is missing, damaged or no checkpoint fails with a cause and a remedy."""
    flip(folder / "b.mdl", begin_of(folder / "b.mdl", "data/0"))
    (folder / "text").write_text("text")
    for other, said in (("missing", "No such file"), ("b.mdl", "checksum of 'w' is wrong"), ("text", "is text")):
        assert run(f"{folder}/a.mdl", f"{folder}/{other}") == FAILED
        cause, remedy = capsys.readouterr().err.splitlines()
        assert said in cause
        assert remedy


@pytest.mark.slow
def test_as_a_process(folder: Path, environment: LocalS3, bucket: str) -> None:
    """The command compares a local checkpoint with one on S3, and says by its status what it found."""
    path = f"s3://{bucket}/run #1/a.mdl"
    save({"w": torch.arange(8.0), "i": torch.arange(3), "step": 1, "old": None}, path)
    assert run(str(folder / "a.mdl"), path) == DONE
    done = cszoo("diff", path, str(folder / "b.mdl"), "--json")
    assert (done.returncode, done.stderr, len(json.loads(done.stdout))) == (DIFFERENT, "", 5)
    secret = environment.identity.secret_key
    cause, _ = failure(cszoo("diff", path, path, environment={"AWS_SECRET_ACCESS_KEY": secret + "x"}))
    assert secret not in cause
