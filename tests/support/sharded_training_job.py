"""Trainings of a sharded model in each of two processes: ``sharded_training_job.py NAME ROOT``.

Each prints a line of JSON that ends what it reports.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from commands import running
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from training import Model, Noisy, loader, made
from training_job import sharded_model

import fsspec_csx
from fsspec_csx import distributed
from fsspec_csx.trainer import Callback, Checkpoint, KeepNCheckpoints, Trainer, processes, sharding

_TIMEOUT = 250


def run(job: str, root: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a job in two processes by torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", __file__, job, root]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(fsspec_csx.__file__).parents[1])}
    with running(
        command,
        env={**os.environ, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as started:
        printed = started.communicate(timeout=_TIMEOUT)
    return subprocess.CompletedProcess(command, started.returncode, *printed)


def report(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What each process reported, in their order."""
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda line: int(line["rank"]))


class At(Callback):
    """Does something before a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step = step
        self.action = action

    def on_train_batch_start(self, trainer: Trainer, model: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step - 1:
            self.action()


class Terminated(Callback):
    """Gets SIGTERM in one process when the training is complete."""

    def on_fit_end(self, trainer: Trainer, loop: Any) -> None:
        if dist.get_rank() == 1:
            signal.raise_signal(signal.SIGTERM)


class StopError(Exception):
    """Ends a training in its midst."""


def stop() -> None:
    """End the training."""
    raise StopError


def train(root: str, *callbacks: Callback, model: Any = sharded_model, seed: int = 7, **options: Any) -> list[str]:
    """The losses of a training of 8 steps, or up to what ends it."""
    checkpoint = Checkpoint(**{"steps": 3, "checkpoint_root": root, **options})
    loop = {"max_steps": 8, "eval_frequency": 0}
    trainer, losses = made(root, *callbacks, checkpoint=checkpoint, model=model, loop=loop, seed=seed)
    data: DataLoader[torch.Tensor] = DataLoader(
        Noisy(), batch_size=2, sampler=DistributedSampler(Noisy(), seed=3, num_replicas=2, rank=dist.get_rank())
    )
    with contextlib.suppress(StopError):
        trainer.fit(data)
    return [loss.hex() for loss in losses]


# -- the jobs ----------------------------------------------------------------------------------------------------------


def resumed(root: str) -> dict[str, Any]:
    """An uninterrupted training, and others that are stopped and resumed; and how some end."""
    found: dict[str, Any] = {"without": train(f"{root}/without", KeepNCheckpoints(1))}
    for name, options in (("sharded", {}), ("waiting", {"asynchronous": False}), ("whole", {"sharded": False})):
        before = train(f"{root}/{name}", At(6, stop), **options)
        found[name] = before[:3] + train(f"{root}/{name}", seed=99)
    found["copies"] = train(f"{root}/unused", steps=0, model=Model)
    train(f"{root}/copies", At(6, stop), model=Model, sharded=True)
    found["copies resumed"] = train(f"{root}/copies", model=Model, sharded=True, seed=99)
    trainer, _ = made(f"{root}/unused", steps=None, model=Model)
    try:
        trainer.validate(loader(8) if dist.get_rank() == 0 else [])
    except ValueError as error:
        found["empty"] = str(error)
    found["ends"] = []
    own = os.environ if dist.get_rank() == 0 else json.loads(os.environ["READER"])
    for name, rank, action in (
        ("refused", 1, lambda: os.environ.update(own)),
        ("terminated", 1, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        callbacks = [At(5, action)] if dist.get_rank() == rank else []
        try:
            train(f"{root}/{name}", *callbacks)
        except (OSError, SystemExit) as error:
            found["ends"].append([isinstance(error, PermissionError), str(error)])
        os.environ.update(json.loads(os.environ["ADMIN"]))
    try:
        train(f"{root}/unused", Terminated(), steps=0)
    except SystemExit as error:
        found["terminated at the end"] = error.code
    return found


def killed(root: str) -> dict[str, Any]:
    """Kill one process while it saves the second checkpoint, once the other has written its shard."""
    path = f"{root}/checkpoint_6.mdl"

    class Deadly(sharding._Planner):
        """Ends the process when its planner resolves the data to write."""

        def resolve_data(self, write_item: Any) -> Any:
            while not distributed.leftovers(path):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

    def save(trainer: Any, state: Any, to: str, **options: Any) -> Any:
        if to == path and dist.get_rank() == 1:
            sharding._Planner = Deadly  # type: ignore[misc]
        return real(trainer, state, to, **options)

    real, sharding.save = sharding.save, save
    return {"losses": train(root)}


def plain(root: str) -> dict[str, Any]:
    """Train, or resume."""
    return {"losses": train(root)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    processes.join(torch.device("cpu"))
    result = {"resumed": resumed, "killed": killed, "plain": plain}[sys.argv[1]](sys.argv[2])
    # All at once: the processes have one stdout.
    print(json.dumps({"rank": dist.get_rank(), **result}) + "\n", end="", flush=True)
