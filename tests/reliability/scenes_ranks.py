"""Jobs of two processes, of which some are killed, or the server of both."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import torch
from stage import NEW, OLD, Scene, Stage
from victims import CleanProcess, state

from fsspec_csx import distributed, load

RANKS = 2


def of_ranks_saving(stage: Stage) -> Scene:
    """Save a sharded checkpoint over a former one, or in a new place; in the background, too."""
    path = stage.place("d")
    former = stage.choice.choice([OLD, OLD, None])
    if former:
        distributed.save(state(OLD), path, storage_options=stage.options(path))

    def intact() -> None:
        assert stage.seed(path) in (former, NEW)

    def right() -> None:
        assert stage.seed(path) == NEW

    operation = stage.choice.choice(["save", "save", "async_save"])
    job = (f"ranks:{operation}", path, NEW)
    name = f"{operation} by two processes {'over an old checkpoint' if former else 'to a new path'}"
    return Scene(name, job, intact, right, None, lambda: job, path, RANKS)


def of_ranks_training(stage: Stage) -> Scene:
    """Train a sharded model, with checkpoints in parts or of one file."""
    root = stage.place("run")
    sharded = stage.choice.random() < 0.7

    def loaded(step: int) -> Any:
        return load(f"{root}/checkpoint_{step}.mdl", storage_options=stage.options(root))

    def intact() -> None:
        last = ".mdl/.metadata" if sharded else ".mdl"
        for name in stage.files():
            if name.endswith(last):
                step = int(name.partition("_")[2].removesuffix(last))
                assert loaded(step)["global_step"] == step

    def right() -> None:
        intact()
        model = loaded(6)["model"]
        expected = trained_by_two(stage.clean)
        assert model.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(tensor, model[name]), name

    job = ("ranks:train", root, 6, sharded)
    name = f"Trainer of two processes, {'in parts' if sharded else 'of one file'}"
    return Scene(name, job, intact, right, None, lambda: job, ranks=RANKS, seconds=3.0, requests=40)


def trained_by_two(clean: CleanProcess) -> dict[str, torch.Tensor]:
    """The model of a training that nothing stops."""
    if not _trained:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            arguments = (RANKS, f"{folder}/meeting", folder, 6, False)
            started = [clean.started("ranks:train", rank, *arguments, environment={}) for rank in range(RANKS)]
            for victim in [stack.enter_context(each) for each in started]:
                assert not victim.wait(), victim.said()
            _trained.update(load(f"{folder}/checkpoint_6.mdl")["model"])
    return _trained


_trained: dict[str, torch.Tensor] = {}
