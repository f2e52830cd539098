"""A small training for tests: a model with dropout, data that are shuffled and augmented, and a schedule."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fsspec_csx.trainer import Callback, Checkpoint, Logger, Trainer, TrainingLoop


class Noisy(Dataset):  # type: ignore[type-arg]
    """Samples with random noise."""

    def __init__(self, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(1)
        self.samples = torch.randn(count, 4, generator=generator)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.samples[index] + 0.1 * torch.randn(4)


class Model(torch.nn.Module):
    """Learns to reproduce its input, with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 4))

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        error = self.layers(batch) - batch
        return {"loss": error.square().mean(), "largest": error.abs().max()}


class Losses(Callback):
    """Records the loss of each batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())


def loader(count: int = 24, **options: Any) -> DataLoader[torch.Tensor]:
    """Batches of 4 samples in a random order."""
    return DataLoader(Noisy(count), batch_size=4, shuffle=True, **options)


def made(
    root: str, *callbacks: Callback, steps: int | None = 2, loop: dict[str, Any] | None = None, **options: Any
) -> tuple[Trainer, list[float]]:
    """A trainer with checkpoints in a folder, and the list to which it adds its losses."""
    losses = Losses()
    checkpoint = options.pop("checkpoint", None) or Checkpoint(steps=steps, checkpoint_root=root)
    defaults: dict[str, Any] = {
        "device": "CPU",
        "model_dir": root if "://" not in root else "/nonexistent",
        "model": Model,
        "optimizer": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
        "schedulers": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
        "loop": TrainingLoop(**(loop or {"max_steps": 10, "eval_frequency": 0})),
        "loggers": [],
        "seed": 7,
    }
    trainer = Trainer(checkpoint=checkpoint, callbacks=[losses, *callbacks], **{**defaults, **options})
    return trainer, losses.losses


class Pause(Callback):
    """Prints the steps of a training that is slow enough to be stopped."""

    def on_train_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        print("step", trainer.global_step, flush=True)
        time.sleep(0.1)


class CtrlC(Callback):
    """Sends Ctrl-C in the third step."""

    def on_train_batch_end(self, trainer: Trainer, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)


class Metrics(Logger):
    """Records the logged metrics."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.logged.append((step, dict(metrics)))
