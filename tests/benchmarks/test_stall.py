"""The benchmarks of how long saves stop a training measure every function; no test depends on times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import stall
import training_stalls


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_every_way_is_measured(tmp_path: Path) -> None:
    """Each way saves in each round, and the table has a row for it."""
    ways = stall.rows()
    stall.measure(ways, tensors=2, size=2**20, rounds=2, folder=tmp_path)
    assert all(len(way.found) == 2 and min(way.found) > 0 for way in ways)
    lines = stall.table(ways).splitlines()
    assert len(lines) == 2 + len(ways)
    assert "(1.0x)" in lines[2]


@pytest.mark.slow
def test_every_way_to_train_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each way, with and without a Trainer, saves, and the table has a row for it."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    training_stalls.main(["--disk", str(tmp_path), "--mib", "16", "--saves", "1", "--seconds", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == [*training_stalls.WAYS]
