"""Operations on checkpoints during which a process is killed, and the states that are allowed afterwards."""

from __future__ import annotations

import functools
import tempfile
from typing import Any

import torch
from scenes_folders import of_cerebras, of_convert, of_delete, of_gc
from scenes_ranks import of_ranks_saving, of_ranks_training
from stage import NEW, OLD, Scene, Stage, among, blob, save_small
from victims import state

from fsspec_csx import distributed, load


def of_save(stage: Stage) -> Scene:
    """Save over a former checkpoint, or in a new place."""
    background = stage.choice.random() < 0.4
    path = stage.place("a.mdl")
    former = stage.choice.choice([OLD, None])
    if former:
        stage.put(path, blob(OLD))
    before = blob(OLD) if former else None
    name = "async_save" if background else "save"
    job = (name, path, NEW)
    return Scene(
        f"{name} {'over an old checkpoint' if former else 'to a new path'}",
        job,
        lambda: among(stage.data(path), before, blob(NEW)),
        lambda: among(stage.data(path), blob(NEW)),
        ["a.mdl"],
        lambda: job,
    )


def of_copy(stage: Stage) -> Scene:
    """Copy or move, up, down, and on S3: between one endpoint and itself, or another one."""
    verb = stage.choice.choice(["copy", "move"])
    way = stage.choice.choice(["up", "down", "within S3", "from S3 to S3"])
    source = stage.put(stage.place("a.mdl", remote=way != "up"), blob(NEW))
    target = stage.place("b.mdl", remote=way != "down")
    former = stage.choice.choice([blob(OLD), None])
    options = ["--force"] if former else []
    if former:
        stage.put(target, former)
    if way == "from S3 to S3":
        options += ["--source-endpoint-url", stage.near]

    def intact() -> None:
        if verb == "move" and stage.data(source) is None:
            among(stage.data(target), blob(NEW))
        else:
            among(stage.data(source), blob(NEW))
            among(stage.data(target), former, blob(NEW))

    def right() -> None:
        among(stage.data(target), blob(NEW))
        among(stage.data(source), None if verb == "move" else blob(NEW))

    def again() -> tuple[Any, ...] | None:
        gone, there = stage.data(source) is None, stage.data(target) == blob(NEW)
        # A finished copy is refused when it is repeated, unless with overwrite.
        return None if gone or (verb == "copy" and there and not former) else job

    job = ("cszoo", verb, source, target, *options)
    return Scene(f"{verb} {way}", job, intact, right, ["b.mdl"] if verb == "move" else ["a.mdl", "b.mdl"], again)


def of_prune(stage: Stage) -> Scene:
    """Keep the newest of several checkpoints, beside other files."""
    remote = stage.choice.random() < 0.7
    small = save_small()
    to_delete = [f"checkpoint_{number}.mdl" for number in range(1, 9)]
    others = ["checkpoint_9.mdl", "notes.txt"]
    for each in [*to_delete, *others]:
        stage.put(stage.place(each, remote=remote), small)
    root = stage.remote if remote else str(stage.local)

    def intact() -> None:
        assert not {*others} - {*stage.files()}
        for each in [*to_delete, *others]:
            among(stage.data(stage.place(each, remote=remote)), small, *([] if each in others else [None]))

    def right() -> None:
        assert stage.files() == others

    job = ("cszoo", "prune", root, "--keep", "1", "--yes")
    return Scene(f"prune {'on S3' if remote else 'local'}", job, intact, right, others, lambda: job, seconds=0.2)


def of_distributed(stage: Stage) -> Scene:
    """Save a sharded checkpoint over a former one."""
    path = stage.place("d")
    distributed.save(state(OLD), path, storage_options=stage.options(path))

    def intact() -> None:
        assert stage.seed(path) in (OLD, NEW)

    def right() -> None:
        assert stage.seed(path) == NEW

    job = ("distributed_save", path, NEW)
    return Scene("distributed.save over an old one", job, intact, right, None, lambda: job, path)


def of_training(stage: Stage) -> Scene:
    """Train with checkpoints."""
    root = stage.place("run")
    names = [f"run/checkpoint_{step}.mdl" for step in (2, 4, 6)]

    def loaded(step: int) -> Any:
        return load(f"{root}/checkpoint_{step}.mdl", storage_options=stage.options(root))

    def intact() -> None:
        for name in stage.files():
            if name.endswith(".mdl"):
                step = int(name.partition("_")[2][:-4])
                assert loaded(step)["global_step"] == step

    def right() -> None:
        assert not {*names} - {*stage.files()}  # SIGTERM may have saved another one
        for name, tensor in trained().items():
            assert torch.equal(tensor, loaded(6)["model"][name]), name

    job = ("train", root, 6)
    return Scene("Trainer", job, intact, right, None, lambda: job)


@functools.cache
def trained() -> dict[str, torch.Tensor]:
    """The model of a training that nothing stops."""
    from training import loader, made

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = made(folder, steps=None, loop={"max_steps": 6, "eval_frequency": 0})
        trainer.fit(loader())
    torch.set_num_threads(threads)
    return dict(trainer.model.state_dict())


SCENES = (
    of_save,
    of_copy,
    of_copy,
    of_delete,
    of_prune,
    of_convert,
    of_distributed,
    of_training,
    of_cerebras,
    of_gc,
    of_ranks_saving,
    of_ranks_training,
)
