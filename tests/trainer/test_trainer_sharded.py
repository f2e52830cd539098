"""The Trainer saves a sharded model in parts, and resumes from them with any number of processes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import fsspec
import pytest
import sharded_training_job
import torch
from training import loader, made

from fsspec_csx import load
from fsspec_csx.testing import LocalS3
from fsspec_csx.trainer import Checkpoint, KeepNCheckpoints

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")


def files(root: str) -> dict[str, list[str]]:
    """The names of the files of each folder below a root."""
    fs, path = fsspec.url_to_fs(root)
    fs.invalidate_cache()
    found: dict[str, list[str]] = {}
    for each in fs.find(path):
        folder, _, name = each[len(path) + 1 :].rpartition("/")
        if name:  # the server keeps empty folders
            found.setdefault(folder, []).append(name)
    return found


@pytest.mark.slow
def test_two_processes(environment: LocalS3, bucket: str) -> None:
    """Losses after a resume from either kind are those of an uninterrupted run; errors and SIGTERM end both."""
    root = f"s3://{bucket}"
    roles = {"ADMIN": json.dumps(environment.environment()), "READER": json.dumps(environment.environment("reader"))}
    done = sharded_training_job.run("resumed", root, **roles)
    assert done.returncode == 0, done.stderr
    for rank, report in enumerate(sharded_training_job.report(done)):
        assert report["rank"] == rank
        assert len(report["without"]) == 8
        for name in ("sharded", "waiting", "whole"):
            assert report[name] == report["without"], (rank, name)
        assert report["copies resumed"] == report["copies"][3:]
        assert "has no batches" in report["empty"]
        assert ("in another process" in report["empty"]) == (rank == 0)
        refused, terminated = report["ends"]
        assert refused[0]
        assert "checkpoint_6.mdl/__1_0" in refused[1]
        assert terminated == [False, "143"]
        assert report["terminated at the end"] == 143
    assert files(f"{root}/without").keys() == {"checkpoint_8.mdl"}
    for run, folder in itertools.product(("sharded", "copies"), ("checkpoint_3.mdl", "checkpoint_8.mdl")):
        manifest, first, second = sorted(files(f"{root}/{run}")[folder])
        assert (manifest, first[:5], second[:5]) == (".metadata", "__0_0", "__1_0")
    assert [*files(f"{root}/refused")] == ["checkpoint_3.mdl"]
    ended = max(int(name[len("checkpoint_") : -len(".mdl")]) for name in files(f"{root}/terminated"))
    assert 5 <= ended < 8
    _goes_on_alone(f"{root}/sharded")


def _goes_on_alone(root: str) -> None:
    saved = load(f"{root}/checkpoint_8.mdl")
    assert saved["model"]["layers.0.weight"].shape == (8, 4)
    assert len(saved["random_states"]) == len(saved["batches"]) == 2
    trainer, losses = made(root, steps=10, loop={"max_steps": 10, "eval_frequency": 0})
    trainer.load_checkpoint(f"{root}/checkpoint_8.mdl")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, saved["model"][name])
    assert trainer.optimizer is not None
    state = trainer.optimizer.state_dict()["state"]
    assert torch.equal(state[0]["exp_avg"], saved["optimizer"]["state"]["0"]["exp_avg"])
    trainer.fit(loader())
    assert len(losses) == 2
    assert files(root)[""] == ["checkpoint_10.mdl"]


@pytest.mark.long
def test_killed_while_saving(environment: LocalS3, bucket: str) -> None:
    """After kill -9 of one process of two, the run resumes from the checkpoint before, and uses the name again."""
    root = f"s3://{bucket}/run"
    whole = sharded_training_job.run("plain", f"s3://{bucket}/whole")
    expected = sharded_training_job.report(whole)[0]["losses"]
    done = sharded_training_job.run("killed", root)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    left = files(root)
    assert ".metadata" in left["checkpoint_3.mdl"]
    assert ".metadata" not in left.get("checkpoint_6.mdl", [])  # the other may have removed its shard
    again = sharded_training_job.run("plain", root)
    assert again.returncode == 0, again.stderr
    assert sharded_training_job.report(again)[0]["losses"] == expected[3:]
    assert {*files(root)} == {"checkpoint_3.mdl", "checkpoint_6.mdl", "checkpoint_8.mdl"}
    assert load(f"{root}/checkpoint_6.mdl")["global_step"] == 6


# -- one process alone -------------------------------------------------------------------------------------------------


class Adding(KeepNCheckpoints):
    """Adds what dicts of torch's own planner would not come back with."""

    def on_save_checkpoint(self, trainer: Any, state_dict: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, state_dict)
        state_dict["odd"] = {1: "one", "empty": {}, "pair": (1, [torch.ones(2)]), "none": None}
        state_dict["nothing"] = {}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_alone(root: str, asynchronous: bool) -> None:
    """A folder on any filesystem, with all that a file has; older ones are deleted with all that is in them."""
    options: dict[str, Any] = {"checkpoint_root": f"{root}/run", "asynchronous": asynchronous}
    short = {"max_steps": 6, "eval_frequency": 0}
    trainer, _ = made("", Adding(1), checkpoint=Checkpoint(2, sharded=True, **options), loop=short)
    trainer.fit(loader())
    assert {*files(f"{root}/run")} == {"checkpoint_6.mdl"}
    saved = load(f"{root}/run/checkpoint_6.mdl")
    odd = saved["odd"]
    assert torch.equal(odd.pop("pair")[1][0], torch.ones(2))
    assert (odd, saved["nothing"], saved["global_step"]) == ({1: "one", "empty": {}, "none": None}, {}, 6)
    trainer, resumed = made("", Adding(1), checkpoint=Checkpoint(2, **options))
    trainer.fit(loader())
    assert {name: len(held) for name, held in files(f"{root}/run").items()} == {"": 1, "checkpoint_6.mdl": 2}
    trainer, whole = made(f"{root}/whole")
    trainer.fit(loader())
    assert resumed == whole[6:]


def test_names_taken(root: str) -> None:
    """Parts of a checkpoint that was never whole do not take its name, but anything else does."""
    fs, path = fsspec.url_to_fs(f"{root}/run")
    for name in ("checkpoint_2.mdl/__0_0.0123456789abcdef.distcp", "checkpoint_4.mdl/mine"):
        fs.makedirs(fs._parent(f"{path}/{name}"), exist_ok=True)
        fs.pipe_file(f"{path}/{name}", b"x")
    checkpoint = Checkpoint(2, checkpoint_root=f"{root}/run", sharded=True)
    trainer, losses = made("", checkpoint=checkpoint, loop={"max_steps": 4, "eval_frequency": 0})
    trainer.fit(loader())
    assert len(losses) == 4  # neither was resumed from
    second, fourth, stamped = sorted(files(f"{root}/run"))
    assert (second, fourth, stamped[:13]) == ("checkpoint_2.mdl", "checkpoint_4.mdl", "checkpoint_4_")
    assert files(f"{root}/run")[fourth] == ["mine"]
    assert trainer.checkpoint.get_latest_checkpoint(trainer) == f"{root}/run/{stamped}"
