"""What the Trainer saves and loads, where, and its errors."""

from __future__ import annotations

import contextlib
import re
import threading
import warnings
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from training import Model, loader, made

from fsspec_csx import load, save
from fsspec_csx.errors import DtypeCastWarning, InvalidCheckpointError, MismatchError, NoCredentialsError
from fsspec_csx.testing import LocalS3
from fsspec_csx.trainer import (
    Callback,
    Checkpoint,
    KeepBestCheckpoints,
    KeepNCheckpoints,
    LoadCheckpointStates,
    SaveCheckpointState,
    Trainer,
    checkpointing,
)

SHORT = {"max_steps": 4, "eval_frequency": 0}


def names(root: str) -> list[str]:
    """The names in a folder."""
    fs, path = fsspec.url_to_fs(root)
    fs.invalidate_cache()
    return sorted(each.rpartition("/")[2] for each in fs.ls(path, detail=False) if not each.endswith("/home"))


def checkpoints(*steps: int) -> list[str]:
    """The names of checkpoints."""
    return sorted(f"checkpoint_{step}.mdl" for step in steps)


# -- saving ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [True, False])
def test_saved(root: str, asynchronous: bool) -> None:
    """Every so many steps and at the end, with all that a run consists of."""
    checkpoint = Checkpoint(3, checkpoint_root=f"{root}/run", asynchronous=asynchronous)
    trainer, _ = made(root, checkpoint=checkpoint, loop={"max_steps": 7, "eval_frequency": 0})
    trainer.fit(loader())
    assert names(f"{root}/run") == checkpoints(3, 6, 7)
    saved = load(f"{root}/run/checkpoint_7.mdl")
    assert saved["global_step"] == 7
    assert {"model", "optimizer", "schedulers", "batches", "random_states"} < saved.keys()
    assert saved["batches"][0]["epoch"] == 1
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(saved["model"][name], tensor)


def test_model_dir_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a root, checkpoints are in the model_dir, which may be relative."""
    monkeypatch.chdir(tmp_path)
    trainer, _ = made("ignored", checkpoint=Checkpoint(4), model_dir="./my runs#1", loop=SHORT)
    trainer.fit(loader())
    assert names(str(tmp_path / "my runs#1")) == checkpoints(4)
    trainer, losses = made("ignored", checkpoint=Checkpoint(4), model_dir="./my runs#1", loop=SHORT)
    trainer.fit(loader())
    assert losses == []


def test_nothing_saved_by_default(tmp_path: Path) -> None:
    """Without a number of steps nothing is written, not even a probe."""
    trainer, _ = made(str(tmp_path / "run"), checkpoint=Checkpoint(checkpoint_root=str(tmp_path / "run")), loop=SHORT)
    trainer.fit(loader())
    assert not (tmp_path / "run").exists()


def test_initial_checkpoint(tmp_path: Path) -> None:
    """The state before the first step, once."""
    root = str(tmp_path / "run")
    for _ in range(2):
        checkpoint = Checkpoint(2, save_initial_checkpoint=True, checkpoint_root=root)
        trainer, _ = made(root, checkpoint=checkpoint, loop=SHORT)
        trainer.fit(loader())
    assert names(root) == checkpoints(0, 2, 4)


def test_name_taken(root: str) -> None:
    """A checkpoint that is there stays, and the new one has the time in its name."""
    save({"mine": 1}, f"{root}/run/checkpoint_4.mdl")
    trainer, _ = made(f"{root}/run", steps=4, loop=SHORT)
    trainer.fit(loader(), ckpt_path=None)
    first, second = names(f"{root}/run")
    assert first == "checkpoint_4.mdl"
    assert re.fullmatch(r"checkpoint_4_\d{8}_\d{6}\.mdl", second)
    assert load(f"{root}/run/checkpoint_4.mdl") == {"mine": 1}
    assert trainer.checkpoint.get_latest_checkpoint(trainer) == f"{root}/run/{second}"


def test_training_goes_on_during_the_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are made while a checkpoint is written, and it holds the state of its own step."""
    go, steps = threading.Event(), []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                go.set()

        def on_after_save_checkpoint(self, trainer: Trainer, ckpt_path: str) -> None:
            steps.append((ckpt_path[-5], trainer.global_step))

    def slowly(obj: Any, path: str, **options: Any) -> Any:
        class Waiting(fsspec.callbacks.NoOpCallback):
            def set_size(self, size: int) -> None:
                assert go.wait(60)

        return real(obj, path, callback=Waiting(), **options)

    real = checkpointing.async_save
    monkeypatch.setattr(checkpointing, "async_save", slowly)
    trainer, _ = made(str(tmp_path), Watch(), loop=SHORT)
    trainer.fit(loader())
    assert load(tmp_path / "checkpoint_2.mdl")["global_step"] == 2
    assert steps[0][0] == "2"
    assert steps[0][1] >= 3


def test_failed_save_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of a checkpoint in the background ends the training with it, and no earlier checkpoint is lost."""
    real = checkpointing.async_save

    def failing(obj: Any, path: str, **options: Any) -> Any:
        if "checkpoint_4" in path:
            obj["model"] = None
            Path(tmp_path / "checkpoint_4.mdl").mkdir()
        return real(obj, path, **options)

    monkeypatch.setattr(checkpointing, "async_save", failing)
    trainer, losses = made(str(tmp_path))
    with pytest.raises(IsADirectoryError):
        trainer.fit(loader())
    assert len(losses) < 10
    assert load(tmp_path / "checkpoint_2.mdl")["global_step"] == 2


@pytest.mark.parametrize(
    "name", ["checkpoint.mdl", "{step}/{step}.mdl", "a/{step}.mdl", "{}_{step}.mdl", "{steps}.mdl"]
)
def test_names_that_make_no_sense(name: str) -> None:
    """A name without the step, or with more than it."""
    with pytest.raises(ValueError, match="cannot name checkpoints"):
        Checkpoint(1, checkpoint_name=name)


def test_other_names(tmp_path: Path) -> None:
    """Any name with a step in it, of which every letter is a letter."""
    checkpoint = Checkpoint(2, checkpoint_root=str(tmp_path), checkpoint_name="a+b.(x)-{step}.pt")
    trainer, _ = made("", checkpoint=checkpoint, loop=SHORT)
    for other in ("aab.(x)-9.pt", "a+b.(x)-9.ptt", "a+b.(x)-x.pt", "xa+b.(x)-9.pt"):
        (tmp_path / other).touch()
    trainer.fit(loader())
    assert trainer.checkpoint.get_latest_checkpoint(trainer) == str(tmp_path / "a+b.(x)-4.pt")


# -- problems are seen before the first step ---------------------------------------------------------------------------


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the trainer is not even made."""
    with pytest.raises(NoCredentialsError):
        made("s3://bucket/run")


def test_read_only_user(server: LocalS3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may only read is reported at set-up; to validate is no problem."""
    for name, value in server.environment("reader").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PermissionError, match=bucket):
        made(f"s3://{bucket}/run")
    trainer, _ = made(f"s3://{bucket}/run", steps=None)
    assert trainer.validate(loader(8))["loss"] > 0


def test_bucket_is_made(environment: LocalS3, new_bucket: str) -> None:
    """A missing bucket is made where that is allowed, and nothing else is left in it."""
    made(f"s3://{new_bucket}/run")
    assert fsspec.filesystem("s3").find(new_bucket) == []


def test_folder_that_cannot_be(tmp_path: Path) -> None:
    """A file in the way of the root."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        made(str(tmp_path / "file" / "run"))


# -- loading -----------------------------------------------------------------------------------------------------------


def test_newest_whole_one(root: str, caplog: pytest.LogCaptureFixture) -> None:
    """The newest by step and time that is whole; a damaged one is named and passed over."""
    trainer, _ = made(f"{root}/run", loop={"max_steps": 4, "eval_frequency": 0})
    trainer.fit(loader())
    fs, path = fsspec.url_to_fs(f"{root}/run")
    whole = fs.cat_file(f"{path}/checkpoint_4.mdl")
    fs.pipe_file(f"{path}/checkpoint_10.mdl", whole[:-100])
    fs.pipe_file(f"{path}/checkpoint_9.mdl", b"")
    fs.pipe_file(f"{path}/.checkpoint_99.mdl.0123456789abcdef.tmp", whole)
    fs.pipe_file(f"{path}/old_checkpoint_99.mdl", whole)
    trainer, losses = made(f"{root}/run", loop={"max_steps": 5, "eval_frequency": 0})
    trainer.fit(loader())
    assert len(losses) == 1
    assert "checkpoint_10.mdl is skipped" in caplog.text
    assert "checkpoint_9.mdl is skipped" in caplog.text


def test_paths(tmp_path: Path) -> None:
    """A path, none at all, or the newest, unless that is switched off."""
    trainer, _ = made(str(tmp_path))
    trainer.fit(loader())
    for path, auto, begun in (
        (tmp_path / "checkpoint_6.mdl", True, 6),
        (None, True, 0),
        (..., True, 10),
        (..., False, 0),
    ):
        checkpoint = Checkpoint(autoload_last_checkpoint=auto, checkpoint_root=str(tmp_path))
        trainer, losses = made("", checkpoint=checkpoint)
        trainer.fit(loader(), ckpt_path=path)
        assert len(losses) == 10 - begun


def test_missing_path(tmp_path: Path) -> None:
    """A path that was given must be there."""
    trainer, _ = made(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        trainer.fit(loader(), ckpt_path=str(tmp_path / "missing.mdl"))


@pytest.mark.parametrize("suffix", ["mdl", "safetensors"])
def test_weights_alone(tmp_path: Path, suffix: str) -> None:
    """The state dict of a model alone is loaded as such."""
    weights = {name: torch.full_like(value, 0.5) for name, value in Model().state_dict().items()}
    save(weights, tmp_path / f"weights.{suffix}")
    trainer, _ = made(str(tmp_path))
    trainer.load_checkpoint(tmp_path / f"weights.{suffix}")
    assert all(bool((value == 0.5).all()) for value in trainer.model.state_dict().values())


@pytest.mark.parametrize("held", [[1], {"x": 1}, {}, torch.ones(1)])
def test_what_is_no_training(tmp_path: Path, held: Any) -> None:
    """A checkpoint of something else is refused."""
    save(held, tmp_path / "x.mdl")
    trainer, _ = made(str(tmp_path))
    with pytest.raises(InvalidCheckpointError, match="not a training"):
        trainer.load_checkpoint(tmp_path / "x.mdl")


def test_other_dtypes(tmp_path: Path) -> None:
    """A checkpoint in BF16 is cast to the model's F32, with one warning that says how to do it once."""
    trainer, _ = made(str(tmp_path), loop=SHORT)
    trainer.fit(loader())
    saved = load(tmp_path / "checkpoint_4.mdl")
    saved["model"] = {name: value.bfloat16() for name, value in saved["model"].items()}
    save(saved, tmp_path / "half.mdl")
    trainer, _ = made(str(tmp_path))
    with pytest.warns(DtypeCastWarning) as caught:
        trainer.load_checkpoint(tmp_path / "half.mdl")
    (warning,) = caught
    text = str(warning.message)
    assert "4 tensors of bfloat16 to float32 were cast, in 0." in text
    assert f"cszoo checkpoint convert {tmp_path}/half.mdl NEW_PATH --dtype float32" in text
    for name, value in trainer.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, saved["model"][name].float())


def test_other_keys_and_shapes(tmp_path: Path) -> None:
    """One error lists all that does not fit, and nothing was loaded; relaxed, the rest is."""
    weights = {name: torch.full_like(value, 0.5) for name, value in Model().state_dict().items()}
    del weights["layers.0.bias"]
    weights["extra"] = torch.ones(2)
    weights["layers.2.bias"] = torch.ones(7)
    save({"model": weights, "global_step": 3}, tmp_path / "x.mdl")
    trainer, _ = made(str(tmp_path))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(MismatchError) as caught:
        trainer.load_checkpoint(tmp_path / "x.mdl")
    text = str(caught.value)
    assert "missing: layers.0.bias; unexpected: extra; of another shape: layers.2.bias (shape (7,), not (4,))" in text
    assert "disable_strict_checkpoint_loading" in text
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert trainer.global_step == 0
    checkpoint = Checkpoint(disable_strict_checkpoint_loading=True, checkpoint_root=str(tmp_path))
    trainer, _ = made("", checkpoint=checkpoint)
    with pytest.warns(UserWarning, match=r"missing: layers\.0\.bias"):
        trainer.load_checkpoint(tmp_path / "x.mdl")
    loaded = trainer.model.state_dict()
    assert bool((loaded["layers.0.weight"] == 0.5).all())
    assert not bool((loaded["layers.0.bias"] == 0.5).any())
    assert trainer.global_step == 3


class Phase(str, Enum):
    """A name that is a string."""

    WARMUP = "warmup"


def test_strings_of_another_class(tmp_path: Path) -> None:
    """A program may have made an enumeration of a string that its scheduler's state holds; a number is refused."""

    def scheduler(optimizer: torch.optim.Optimizer, phase: Any) -> Any:
        made = torch.optim.lr_scheduler.StepLR(optimizer, 5)
        made.phase = phase  # type: ignore[attr-defined]
        return made

    for saved, fits in (("warmup", True), (1, False)):
        trainer, _ = made(str(tmp_path), steps=None, schedulers=partial(scheduler, phase=saved))
        state = {"model": trainer.model.state_dict(), "schedulers": [trainer.schedulers[0].state_dict()]}
        save(state, tmp_path / "x.mdl")
        trainer, _ = made(str(tmp_path), steps=None, schedulers=partial(scheduler, phase=Phase.WARMUP))
        with contextlib.nullcontext() if fits else pytest.raises(InvalidCheckpointError, match="phase"):
            trainer.load_checkpoint(tmp_path / "x.mdl")
        assert trainer.schedulers[0].phase == "warmup"


def test_another_optimizer(tmp_path: Path) -> None:
    """The state of another optimizer is refused."""
    trainer, _ = made(str(tmp_path), loop=SHORT)
    trainer.fit(loader())
    saved = load(tmp_path / "checkpoint_4.mdl")
    saved["optimizer"]["param_groups"] *= 2
    save(saved, tmp_path / "x.mdl")
    trainer, _ = made(str(tmp_path))
    with pytest.raises(MismatchError, match="another optimizer"):
        trainer.load_checkpoint(tmp_path / "x.mdl")


# -- some states -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("states", "step"), [("model", 0), (["model", "global_step"], 4), ("all", 4)])
def test_load_some_states(tmp_path: Path, states: Any, step: int) -> None:
    """Only the chosen states are loaded."""
    trainer, _ = made(str(tmp_path), loop=SHORT)
    trainer.fit(loader())
    again, _ = made(str(tmp_path), LoadCheckpointStates(states))
    again.load_checkpoint(tmp_path / "checkpoint_4.mdl")
    assert again.global_step == step
    assert torch.equal(again.model.layers[0].weight, trainer.model.layers[0].weight)
    assert bool(again.optimizer.state_dict()["state"]) == (states == "all")


def test_states_that_are_not_there(tmp_path: Path) -> None:
    """A state that the checkpoint lacks is named."""
    trainer, _ = made(str(tmp_path), loop=SHORT)
    trainer.fit(loader())
    trainer, _ = made(str(tmp_path), LoadCheckpointStates("model, optimiser"))
    with pytest.raises(KeyError, match="no state 'optimiser'"):
        trainer.load_checkpoint(tmp_path / "checkpoint_4.mdl")


def test_save_some_states(root: str) -> None:
    """Every k-th checkpoint and the last have a file of some states beside them, which retention leaves."""
    callbacks = [SaveCheckpointState(2, "model,global_step"), KeepNCheckpoints(1)]
    trainer, _ = made(f"{root}/run", *callbacks, steps=1, loop={"max_steps": 5, "eval_frequency": 0})
    trainer.fit(loader())
    beside = [f"model_global_step_checkpoint_{step}.mdl" for step in (2, 4, 5)]
    assert names(f"{root}/run") == sorted([*checkpoints(5), *beside])
    assert load(f"{root}/run/{beside[0]}").keys() == {"model", "global_step"}
    trainer, _ = made(f"{root}/run", steps=None)
    assert trainer.checkpoint.get_latest_checkpoint(trainer) == f"{root}/run/checkpoint_5.mdl"
    assert trainer.checkpoint.get_checkpoint_path(6) == f"{root}/run/checkpoint_6.mdl"


# -- retention ---------------------------------------------------------------------------------------------------------


def test_keep_n(root: str) -> None:
    """The newest of this run are kept, and what is not of it."""
    save({"mine": 1}, f"{root}/run/checkpoint_1.mdl")
    save({"mine": 1}, f"{root}/run/other.mdl")
    trainer, _ = made(f"{root}/run", KeepNCheckpoints(2))
    trainer.fit(loader(), ckpt_path=None)
    assert names(f"{root}/run") == [*checkpoints(1, 8, 10), "other.mdl"]


def test_keep_n_after_a_resume(tmp_path: Path) -> None:
    """A run that is resumed knows its checkpoints of before; the one resumed from stays as long as it runs."""
    trainer, _ = made(str(tmp_path), KeepNCheckpoints(2), loop={"max_steps": 6, "eval_frequency": 0})
    trainer.fit(loader())
    assert names(str(tmp_path)) == checkpoints(4, 6)
    trainer, _ = made(str(tmp_path), KeepNCheckpoints(2), loop={"max_steps": 12, "eval_frequency": 0})
    trainer.fit(loader())
    assert names(str(tmp_path)) == checkpoints(6, 10, 12)
    trainer, _ = made(str(tmp_path), KeepNCheckpoints(2), loop={"max_steps": 14, "eval_frequency": 0})
    trainer.fit(loader())
    assert names(str(tmp_path)) == checkpoints(12, 14)


def test_keep_n_touches_no_other_root(tmp_path: Path) -> None:
    """Checkpoints of another root are safe, and so is what a checkpoint names that is none."""
    old, new = tmp_path / "old", tmp_path / "new"
    trainer, _ = made(str(old), KeepNCheckpoints(2), loop=SHORT)
    trainer.fit(loader())
    trainer, _ = made(str(new), KeepNCheckpoints(1), loop={"max_steps": 10, "eval_frequency": 0})
    trainer.fit(loader(), ckpt_path=str(old / "checkpoint_4.mdl"))
    assert names(str(old)) == checkpoints(2, 4)
    assert names(str(new)) == checkpoints(10)
    saved = load(new / "checkpoint_10.mdl")
    saved["retention"]["KeepNCheckpoints"] = {
        "names": ["../old/checkpoint_2.mdl", "precious"],
        "to_delete": ["precious"],
    }
    save(saved, new / "checkpoint_10.mdl")
    (new / "precious").touch()
    trainer, _ = made(str(new), KeepNCheckpoints(1), loop={"max_steps": 14, "eval_frequency": 0})
    trainer.fit(loader())
    assert names(str(old)) == checkpoints(2, 4)
    assert names(str(new)) == [*checkpoints(10, 14), "precious"]


def test_failed_deletion_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Storage that refuses to delete does not stop the training."""
    from fsspec_csx.trainer import checkpoint_root

    real, failed = checkpoint_root.delete, []

    def failing(path: str) -> None:
        if len(failed) < 2 and "writable" not in path:
            failed.append(path)
            raise PermissionError("not now")
        real(path)

    monkeypatch.setattr(checkpoint_root, "delete", failing)
    trainer, losses = made(str(tmp_path), KeepNCheckpoints(1))
    trainer.fit(loader())
    assert len(losses) == 10
    assert failed == [str(tmp_path / "checkpoint_2.mdl")] * 2
    assert "checkpoint_2.mdl was not deleted, which is tried again: not now" in caplog.text
    assert names(str(tmp_path)) == checkpoints(10)


@pytest.mark.parametrize(("mode", "best"), [("min", 4), ("max", 8)])
def test_keep_best(tmp_path: Path, mode: str, best: int) -> None:
    """The best by a metric of the validation, and the newest."""
    values = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0, 10: 3.5}

    class Judge(Callback):
        def on_validate_end(self, trainer: Trainer, model: Any, loop: Any) -> None:
            loop.metrics["score"] = values[trainer.global_step]

    keep = KeepBestCheckpoints(1, "score", mode)
    trainer, _ = made(str(tmp_path), Judge(), keep, loop={"max_steps": 10, "eval_frequency": 2})
    trainer.fit(loader(), loader(4))
    assert names(str(tmp_path)) == checkpoints(best, 10)


def test_keep_best_and_newest(tmp_path: Path) -> None:
    """What one callback keeps the other does not delete, in either order, also after a resume."""
    values = {2: 1.0, 4: 0.5, 6: 2.0, 8: 2.0, 10: 2.0, 12: 0.1, 14: 0.2}

    class Judge(Callback):
        def on_validate_end(self, trainer: Trainer, model: Any, loop: Any) -> None:
            loop.metrics["loss"] = values[trainer.global_step]

    for turned in (False, True):
        root = str(tmp_path / str(turned))
        for steps, kept in ((8, (4, 6, 8)), (10, (4, 8, 10)), (14, (10, 12, 14))):
            keep = [KeepBestCheckpoints(1), KeepNCheckpoints(2)]
            loop = {"max_steps": steps, "eval_frequency": 2}
            trainer, _ = made(root, Judge(), *(reversed(keep) if turned else keep), loop=loop)
            trainer.fit(loader(), loader(4))
            assert names(root) == checkpoints(*kept)


@pytest.mark.parametrize(
    "make", [lambda: KeepNCheckpoints(0), lambda: KeepBestCheckpoints(mode="best"), lambda: SaveCheckpointState(0)]
)
def test_retentions_that_make_no_sense(make: Any) -> None:
    """Wrong arguments are reported when the callback is made."""
    with pytest.raises(ValueError, match=r"\. [A-Z]"):
        make()


def test_no_warning_without_a_reason(tmp_path: Path) -> None:
    """An ordinary resume warns of nothing."""
    trainer, _ = made(str(tmp_path), loop=SHORT)
    trainer.fit(loader())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer, _ = made(str(tmp_path))
        trainer.fit(loader())


def test_patterns(root: str) -> None:
    """validate_all takes patterns on any filesystem, sorted by step, and returns the metrics of each checkpoint."""
    folder = f"{root}/run"
    made(folder, loop={"max_steps": 10, "eval_frequency": 0}, steps=4)[0].fit(loader())
    trainer, _ = made(f"{root}/other", optimizer=None, schedulers=None, steps=None)
    found = trainer.validate_all([loader(8), loader(8)], [f"{folder}/checkpoint_*.mdl", f"{folder}/checkpoint_4.mdl"])
    assert [path for path, _ in found] == [f"{folder}/checkpoint_{step}.mdl" for step in (4, 8, 10, 4)]
    assert all(len(metrics) == 2 and metrics[0]["loss"] > 0 for _, metrics in found)
    assert trainer.validate_all(loader(8), None)[0][0] is None
    with pytest.raises(FileNotFoundError):
        trainer.validate_all(loader(8), f"{folder}/other_*.mdl")
