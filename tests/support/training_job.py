"""A training as a process: ``training_job.py ROOT STEPS [ddp|fsdp]``. It prints each step and its loss."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from training import Model, Noisy, loader, made

from fsspec_csx.trainer import Callback, Checkpoint, Trainer


class Telling(Callback):
    """Prints steps and losses, slowly enough to be stopped."""

    def on_train_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(trainer.global_step, outputs["loss"].item().hex(), flush=True)
        time.sleep(float(os.environ.get("PAUSE", "0")))


def sharded_model() -> torch.nn.Module:
    """The model with each parameter sharded over the processes."""
    from torch.distributed.fsdp import fully_shard

    model = Model()
    fully_shard(model)
    return model


def main(root: str, steps: int, sharding: str = "") -> None:
    """Train up to a step, or resume."""
    torch.set_num_threads(1)
    options: dict[str, Any] = {"loop": {"max_steps": steps, "eval_frequency": 0 if "RANK" not in os.environ else 1.0}}
    if sharding == "fsdp":
        options["model"] = sharded_model
    checkpoint = Checkpoint(
        int(os.environ.get("STEPS", "2")), checkpoint_root=root, local_dir=os.environ.get("LOCAL_DIR")
    )
    trainer, _ = made(root, Telling(), checkpoint=checkpoint, **options)
    data: DataLoader[torch.Tensor] = loader()
    if "WORLD_SIZE" in os.environ:
        data = DataLoader(Noisy(), batch_size=2, sampler=DistributedSampler(Noisy(), seed=3))
    trainer.fit(data, loader(8))
    if "WORLD_SIZE" in os.environ:
        losses: list[Any] = [None] * int(os.environ["WORLD_SIZE"])
        torch.distributed.all_gather_object(losses, trainer.loop.val_loop.metrics["loss"])
        assert len({*losses}) == 1, losses
    if trainer.global_step == steps and os.environ.get("RANK", "0") == "0":
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
