"""A training in each of two processes: ``two_processes_job.py ROOT``. Each prints a line of JSON with what it saw."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from training import Noisy, loader, made

from fsspec_csx.trainer import Callback, Checkpoint, Logging, TensorBoardLogger, processes

CALLS = ("all_reduce", "all_gather_object", "broadcast_object_list", "barrier", "all_gather", "broadcast")


class Counts(Callback):
    """Counts a training's messages to other processes, and how often the Trainer waits for a tensor's value."""

    def __init__(self) -> None:
        self.calls = 0
        for name in CALLS:
            setattr(dist, name, self._counted(getattr(dist, name)))
        for name in ("item", "tolist", "__float__", "__bool__"):
            setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))

    def _counted(self, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            # torch's own optimizers and samplers do the latter, of tensors on the CPU.
            self.calls += "fsspec_csx" in sys._getframe(1).f_code.co_filename
            return real(*args, **kwargs)

        return call

    def on_train_start(self, *args: Any) -> None:
        self.calls = 0

    def on_train_end(self, *args: Any) -> None:
        self.during = self.calls


def main(root: str) -> dict[str, Any]:
    """Count in a training without logs, and then resume what one process saved."""
    counts = Counts()
    sampler: Any = DistributedSampler(Noisy(), seed=3)
    data: DataLoader[torch.Tensor] = DataLoader(Noisy(), batch_size=2, sampler=sampler)
    trainer, _ = made(root, steps=None, loop={"max_steps": 200, "eval_frequency": 0}, logging=Logging(log_steps=None))
    trainer.callbacks = [each for each in trainer.callbacks if type(each).__name__ != "Losses"]
    trainer.callbacks.append(counts)
    trainer.fit(data, ckpt_path=None)
    found: dict[str, Any] = {"calls": counts.during}

    board = TensorBoardLogger(f"{root}/board{dist.get_rank()}")
    checkpoint = Checkpoint(checkpoint_root=root)
    trainer, _ = made(root, checkpoint=checkpoint, loop={"max_steps": 4, "eval_frequency": 1}, loggers=[board])
    found["informs"] = trainer.logger.isEnabledFor(logging.INFO)
    trainer.fit(data, loader(8))
    found["boards"] = sorted(each.name for each in Path(root).iterdir() if each.name.startswith("board"))
    found["resumed"] = trainer.checkpoint.resumed_from
    found["drawn"] = [float(numpy.random.random()), torch.rand(()).item()]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.getLogger().addHandler(logging.NullHandler())
    processes.join(torch.device("cpu"))
    result = main(sys.argv[1])
    print(json.dumps({"rank": dist.get_rank(), **result}) + "\n", end="", flush=True)
