"""If the newest checkpoint is damaged or incomplete, a training resumes from the newest complete one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from training import Model, loader, made

from fsspec_csx import load, save
from fsspec_csx.errors import CheckpointError, MismatchError
from fsspec_csx.testing import LocalS3
from fsspec_csx.trainer import Callback, Checkpoint, LoadCheckpointStates, Trainer

SHORT = {"max_steps": 6, "eval_frequency": 0}


def trained(root: str, *callbacks: Callback, sharded: bool = False, **options: Any) -> tuple[Trainer, list[float]]:
    """A training of 6 steps that is saved after 2, 4 and 6, or the rest of one."""
    checkpoint = Checkpoint(2, checkpoint_root=root, sharded=sharded)
    trainer, losses = made(root, *callbacks, checkpoint=checkpoint, loop=SHORT)
    trainer.fit(loader(), **options)
    return trainer, losses


def cut(path: str) -> None:
    """Drop the end of a file."""
    fs, inner = fsspec.url_to_fs(path)
    fs.pipe_file(inner, fs.cat_file(inner)[:-1000])


def flipped(path: str) -> None:
    """Change a byte of a tensor."""
    fs, inner = fsspec.url_to_fs(path)
    content = bytearray(fs.cat_file(inner))
    tensor = load(path)["model"]["layers.0.weight"].numpy().tobytes()
    content[bytes(content).index(tensor)] ^= 1
    fs.pipe_file(inner, bytes(content))


@pytest.mark.parametrize("damage", [cut, flipped])
def test_damaged_file(root: str, damage: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    """A truncated or changed file is skipped with a warning; if the caller names it, it is an error."""
    _, whole = trained(f"{root}/run")
    damage(f"{root}/run/checkpoint_6.mdl")
    for damaged in ("checkpoint_6.mdl", "checkpoint_4.mdl"):
        with pytest.raises(CheckpointError):
            trained(f"{root}/run", ckpt_path=f"{root}/run/checkpoint_6.mdl")
        trainer, losses = made(f"{root}/run", steps=None, loop=SHORT)
        trainer.fit(loader())
        begun = {"checkpoint_6.mdl": 4, "checkpoint_4.mdl": 2}[damaged]
        assert losses == whole[begun:]
        assert trainer.checkpoint.resumed_from == f"{root}/run/checkpoint_{begun}.mdl"
        assert f"{damaged} is skipped" in caplog.text
        cut(f"{root}/run/checkpoint_4.mdl")


def test_shard_missing(root: str, caplog: pytest.LogCaptureFixture) -> None:
    """A folder without its manifest, or without a shard, is passed over."""
    _, whole = trained(f"{root}/run", sharded=True)
    fs, path = fsspec.url_to_fs(f"{root}/run")
    fs.rm_file(f"{path}/checkpoint_6.mdl/.metadata")
    (shard,) = (name for name in fs.find(f"{path}/checkpoint_4.mdl") if name.endswith(".distcp"))
    fs.rm_file(shard)
    for name in ("checkpoint_6.mdl", "checkpoint_4.mdl"):
        with pytest.raises((CheckpointError, FileNotFoundError)):
            trained(f"{root}/run", sharded=True, ckpt_path=f"{root}/run/{name}")
    _, losses = trained(f"{root}/run", sharded=True)
    assert losses == whole[2:]
    for name in ("checkpoint_6.mdl", "checkpoint_4.mdl"):
        assert f"{name} is skipped" in caplog.text


def test_unfinished_cerebras_checkpoint(environment: LocalS3, bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """One whose metadata, which comes last and has ``__SUCCESS__``, was never written is passed over."""
    root = f"s3://{bucket}/run"
    trainer, _ = trained(root)
    state = load(f"{root}/checkpoint_6.mdl")
    fs = fsspec.filesystem("s3")
    save({"model": state["model"], "global_step": 8}, f"{root}/checkpoint_8.mdl", format="cerebras")
    save({"model": state["model"], "global_step": 7}, f"{root}/checkpoint_7.mdl", format="cerebras")
    before = {*fs.find(f"{root}/checkpoint_8.mdl")}
    (metadata,) = (name for name in before if "metadata" in name.rpartition("/")[2].lower())
    fs.rm_file(metadata)
    trainer, losses = made(root, steps=None, loop={"max_steps": 8, "eval_frequency": 0})
    trainer.fit(loader())
    assert trainer.checkpoint.resumed_from == f"{root}/checkpoint_7.mdl"
    assert len(losses) == 1
    assert "checkpoint_8.mdl is skipped" in caplog.text


def test_nothing_whole(tmp_path: Path) -> None:
    """Without any complete one a new training starts, and the damaged one stays."""
    (tmp_path / "checkpoint_6.mdl").write_bytes(b"PK")
    trainer, losses = trained(str(tmp_path))
    assert len(losses) == 6
    assert trainer.checkpoint.resumed_from is None
    assert (tmp_path / "checkpoint_6.mdl").read_bytes() == b"PK"


def test_another_model_is_no_damage(tmp_path: Path) -> None:
    """The newest one, of another model, is an error: an older one would be of another, too."""
    trained(str(tmp_path))
    trainer, _ = made(str(tmp_path), model=lambda: Other(), loop=SHORT)
    with pytest.raises(MismatchError):
        trainer.fit(loader())


class Other(Model):
    """Another model."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = torch.nn.Linear(2, 2)


# -- only the states that are needed -----------------------------------------------------------------------------------


def spoiled(root: str) -> str:
    """A checkpoint of which the optimizer's state cannot be read."""
    trained(root)
    path = f"{root}/checkpoint_6.mdl"
    fs, inner = fsspec.url_to_fs(path)
    content = bytearray(fs.cat_file(inner))
    for own in load(path)["optimizer"]["state"].values():
        content[bytes(content).index(own["exp_avg"].numpy().tobytes())] ^= 1
    fs.pipe_file(inner, bytes(content))
    with pytest.raises(CheckpointError):
        load(path)
    return path


def test_states_that_are_left_are_not_read(root: str) -> None:
    """Neither to resume with the model alone, nor to validate without an optimizer."""
    path = spoiled(f"{root}/run")
    weights = load(path, keys=["model"])["model"]
    trainer, losses = made(f"{root}/new", LoadCheckpointStates("model"), loop=SHORT, steps=None)
    trainer.load_checkpoint(path)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    trainer.fit(loader(), ckpt_path=path)
    assert len(losses) == 6
    trainer, _ = made(f"{root}/new", optimizer=None, schedulers=None, loop=SHORT, steps=None)
    assert trainer.validate(loader(8), ckpt_path=path)["loss"] > 0
    assert trainer.global_step == 6
    with pytest.raises(KeyError, match=r"no state 'modle'. It has 'model', 'optimizer'"):
        trained(f"{root}/new", LoadCheckpointStates("modle"), ckpt_path=path)


def test_weights_alone_have_no_states(tmp_path: Path) -> None:
    """The tensors of a model alone are its model, whatever their names."""
    weights = {name: torch.full_like(value, 0.5) for name, value in Model().state_dict().items()}
    save(weights, tmp_path / "weights.pt")
    trainer, _ = made(str(tmp_path), LoadCheckpointStates("model"), steps=None, loop=SHORT)
    trainer.load_checkpoint(tmp_path / "weights.pt")
    assert all(bool((value == 0.5).all()) for value in trainer.model.state_dict().values())
