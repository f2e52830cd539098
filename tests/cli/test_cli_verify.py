"""cszoo checkpoint verify: what it prints, and its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from broken import begin_of, flip
from commands import DIFFERENT, DONE, FAILED, cszoo, failure

from fsspec_csx.checkpoint.api import save
from fsspec_csx.cli import main
from fsspec_csx.testing import LocalS3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a whole checkpoint and a damaged one."""
    for name in ("whole.mdl", "damaged.mdl"):
        save({"w": torch.ones(1000), "v": torch.ones(10)}, tmp_path / name)
    for record in ("data/0", "data/1"):
        flip(tmp_path / "damaged.mdl", begin_of(tmp_path / "damaged.mdl", record))
    (tmp_path / "text").write_text("text")
    return tmp_path


def run(*arguments: str) -> int:
    """The exit status of the verb."""
    return main(["checkpoint", "verify", *arguments])


def test_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line says what was checked."""
    path = folder / "whole.mdl"
    assert run(str(path)) == DONE
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}: whole (")
    assert "records with checksums, 0 without" in line


def test_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All damage of all files is reported, with a status of its own; what is no checkpoint is damaged."""
    assert run(*(str(folder / name) for name in ("damaged.mdl", "whole.mdl", "text"))) == DIFFERENT
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0].rpartition("/")[2] for line in lines if line.startswith("/")] == [
        "damaged.mdl",
        "whole.mdl",
        "text",
    ]
    assert [line for line in lines if line.startswith("  ")] == [
        "  the checksum of 'w' (record 'archive/data/0') is wrong",
        "  the checksum of 'v' (record 'archive/data/1') is wrong",
        "  it is text (first bytes 'text')",
    ]


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints a list with an entry for each path."""
    assert run("--json", str(folder / "whole.mdl"), str(folder / "damaged.mdl")) == DIFFERENT
    whole, damaged = json.loads(capsys.readouterr().out)
    assert (whole["damage"], whole["size"]) == ([], (folder / "whole.mdl").stat().st_size)
    assert len(damaged["damage"]) == 2


def test_a_missing_file_hides_no_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What could not be read fails at the end; the others are verified nonetheless."""
    assert run(*(str(folder / name) for name in ("missing.mdl", "damaged.mdl"))) == FAILED
    report = capsys.readouterr()
    lines = report.out.splitlines()
    assert lines[0].startswith(f"{folder}/missing.mdl: not verified: ")
    assert len(lines) == 4
    assert len(report.err.splitlines()) == 2


@pytest.mark.slow
def test_as_a_process(folder: Path, environment: LocalS3, bucket: str) -> None:
    """The command verifies objects on S3, with the server's checksum of them too."""
    path = f"s3://{bucket}/run/w #1.mdl"
    save({"w": torch.ones(1000)}, path)
    done = cszoo("verify", path, str(folder / "damaged.mdl"))
    assert (done.returncode, done.stderr) == (DIFFERENT, "")
    assert "matches the server's checksum" in done.stdout
    cause, remedy = failure(cszoo("verify", f"{path}0"))
    assert f"{path}0" in cause
    assert remedy
