"""KeepBestCheckpoints keeps the best of a whole run, and SaveCheckpointState saves every k-th of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import fsspec
import pytest
from training import loader, made

from fsspec_csx import load
from fsspec_csx.trainer import Callback, Checkpoint, KeepBestCheckpoints, SaveCheckpointState, Trainer


class Judge(Callback):
    """Gives validations their results, by the step."""

    def __init__(self, values: dict[int, float]) -> None:
        self.values = values

    def on_validate_end(self, trainer: Trainer, model: Any, loop: Any) -> None:
        loop.metrics["score"] = self.values[trainer.global_step]


def run(root: str, steps: int, values: dict[int, float], keep: Any, every: int = 1, **loop: Any) -> list[str]:
    """Train up to a step, and return which checkpoints are left."""
    options = {"max_steps": steps, "eval_frequency": every, **loop}
    trainer, _ = made(root, Judge(values), keep, steps=1, loop=options)
    trainer.fit(loader(), loader(4))
    fs, path = fsspec.url_to_fs(root)
    fs.invalidate_cache()
    names = (each.rpartition("/")[2] for each in fs.ls(path, detail=False))
    return sorted(name.removeprefix("checkpoint_").removesuffix(".mdl") for name in names if name.endswith(".mdl"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_after_many_resumes(root: str, mode: str) -> None:
    """The best one stays, whether it was saved in this process, resumed from, or saved long ago."""
    best = {1: 0.9, 2: 0.1, 3: 0.5, 4: 0.6, 5: 0.7, 6: 0.8, 7: 0.05, 8: 0.5}
    values = best if mode == "min" else {step: -value for step, value in best.items()}
    left = [run(f"{root}/run", steps, values, KeepBestCheckpoints(1, "score", mode)) for steps in (2, 4, 5, 6, 8)]
    # The one that a process resumed from stays as long as it runs.
    assert left == [["2"], ["2", "4"], ["2", "4", "5"], ["2", "5", "6"], ["6", "7", "8"]]


def test_nan_is_never_best(tmp_path: Path) -> None:
    """Neither of a minimum nor of a maximum, also after a resume."""
    values = {1: math.nan, 2: 0.5, 3: math.nan, 4: math.nan, 5: 0.7}
    for mode, best in (("min", "2"), ("max", "5")):
        root = str(tmp_path / mode)
        assert run(root, 3, values, KeepBestCheckpoints(1, "score", mode)) == ["2", "3"]
        assert run(root, 5, values, KeepBestCheckpoints(1, "score", mode)) == sorted({best, "3", "5"})


def test_wrong_metric(tmp_path: Path) -> None:
    """A metric that the validation lacks is an error of the first one, which names those that there are."""
    with pytest.raises(ValueError, match=r"no metric 'acc'.*largest, score"):
        run(str(tmp_path), 4, {1: 0.1}, KeepBestCheckpoints(1, "acc"))
    assert [*tmp_path.glob("*.mdl")] == [tmp_path / "checkpoint_1.mdl"]  # it is saved nevertheless


@pytest.mark.parametrize(("validation", "frequency"), [(None, 1), (True, 0), ([], 1)])
def test_without_validation(tmp_path: Path, validation: Any, frequency: int) -> None:
    """Without any validation it would delete what it could not judge."""
    trainer, losses = made(str(tmp_path), KeepBestCheckpoints(1), loop={"max_steps": 4, "eval_frequency": frequency})
    with pytest.raises(ValueError, match="needs a validation"):
        trainer.fit(loader(), loader(4) if validation is True else validation)
    assert losses == []


def test_saved_when_the_validation_fails(tmp_path: Path) -> None:
    """A step whose validation fails is saved, and resumed from as if it had not failed."""

    class Failing(Callback):
        def on_validate_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                raise RuntimeError("out of memory")

    loop = {"max_steps": 6, "eval_frequency": 2}
    trainer, whole = made(str(tmp_path / "whole"), KeepBestCheckpoints(1), loop=loop)
    trainer.fit(loader(), loader(8))
    trainer, before = made(str(tmp_path / "run"), KeepBestCheckpoints(1), Failing(), loop=loop)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(loader(), loader(8))
    trainer, after = made(str(tmp_path / "run"), KeepBestCheckpoints(1), loop=loop)
    trainer.fit(loader(), loader(8))
    assert (len(before), len(after)) == (4, 2)
    assert before + after == whole


# -- every k-th --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [True, False])
def test_every_kth(root: str, asynchronous: bool) -> None:
    """Every k-th checkpoint of the whole run, and the last of each process, has a file of its own."""

    def names(steps: int) -> list[str]:
        checkpoint = Checkpoint(1, checkpoint_root=f"{root}/run", asynchronous=asynchronous)
        loop = {"max_steps": steps, "eval_frequency": 0}
        trainer, _ = made(root, SaveCheckpointState(3, "model, global_step"), checkpoint=checkpoint, loop=loop)
        trainer.fit(loader())
        fs, path = fsspec.url_to_fs(f"{root}/run")
        fs.invalidate_cache()
        found = (each.rpartition("/")[2] for each in fs.ls(path, detail=False))
        return sorted(name for name in found if name.startswith("model"))

    assert names(5) == [f"model_global_step_checkpoint_{step}.mdl" for step in (3, 5)]
    assert names(8) == [f"model_global_step_checkpoint_{step}.mdl" for step in (3, 5, 6, 8)]
    saved = load(f"{root}/run/model_global_step_checkpoint_6.mdl")
    assert saved.keys() == {"model", "global_step"}
    assert saved["global_step"] == 6


def test_wrong_state(tmp_path: Path) -> None:
    """A state that no checkpoint has is an error of the first one."""
    trainer, losses = made(str(tmp_path), SaveCheckpointState(100, "modle"))
    with pytest.raises(KeyError, match="modle"):
        trainer.fit(loader())
    assert len(losses) == 2


# -- validation by a fraction ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        ({"num_steps": 10, "eval_frequency": 0.5}, [[5, 10], [15, 20]]),
        ({"num_steps": 4, "eval_frequency": 0.25}, [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ({"max_steps": 10, "eval_frequency": 1.0}, [[10], []]),
        ({"num_steps": 3, "eval_frequency": 2}, [[2, 3], [4, 6]]),
    ],
    ids=str,
)
def test_fraction(tmp_path: Path, loop: dict[str, Any], expected: list[list[int]]) -> None:
    """A fraction is one of the steps of this call of fit, and counted from its beginning."""
    for steps in expected:
        found: list[int] = []

        class Watch(Callback):
            def on_validate_end(self, trainer: Trainer, *args: Any, found: list[int] = found) -> None:
                found.append(trainer.global_step)

        trainer, _ = made(str(tmp_path), Watch(), steps=1, loop=loop)
        trainer.fit(loader(), loader(4))
        assert found == steps
