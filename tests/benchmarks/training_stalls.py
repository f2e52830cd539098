"""How long saves stop a training, with and without a local disk: ``python tests/benchmarks/training_stalls.py``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from servers import SERVERS, exit_on_sigterm, running

import fsspec_csx
from fsspec_csx import trainer

WAYS = {
    "save": "waits until the checkpoint is on the server",
    "async_save": "waits for the copy in memory, and for the upload before",
    "async_save(local=…)": "waits for the copy in memory, and for the local file before",
    "Trainer": "waits as async_save does, and asks the server whether the name is taken",
    "Trainer(local_dir=…)": "waits as async_save(local=…) does, and asks the server whether the name is taken",
}
_WARM_UPS = 2


def saver(way: str, disk: str, options: dict[str, Any]) -> tuple[Callable[[Any, str], None], Callable[[], None]]:
    """A function that saves as a training does, and one that waits until all is on the server."""
    last: list[Any] = []

    def save(state: Any, path: str) -> None:
        if way == "save":
            fsspec_csx.save(state, path, storage_options=options)
            return
        if last:
            (last[-1].local or last[-1]).result()
        local = disk if way.endswith("(local=…)") else None
        last.append(fsspec_csx.async_save(state, path, local=local, storage_options=options))

    def finish() -> None:
        for future in last:
            future.result()

    return save, finish


def measured(way: str, root: str, disk: str, options: dict[str, Any], arguments: argparse.Namespace) -> list[float]:
    """The seconds that each save stopped the training, after two that warm up, and at last those until all is safe."""
    state = {f"layers.{number}": torch.rand(2**22) for number in range(arguments.mib // 16)}
    save, finish = saver(way, disk, options)
    stalls = []
    for step in range(arguments.saves + _WARM_UPS):
        time.sleep(arguments.seconds)  # the steps of the training, on a GPU
        began = time.perf_counter()
        save(state, f"{root}/{step}.mdl")
        stalls.append(time.perf_counter() - began)
    began = time.perf_counter()
    finish()
    return [*stalls[_WARM_UPS:], time.perf_counter() - began]


class _Timed(trainer.Checkpoint):
    """Notes how long each save stops the training, and how long the end of ``fit`` waits."""

    def __init__(self, seconds: float, **options: Any) -> None:
        super().__init__(steps=1, **options)
        self._seconds = seconds
        self.stalls: list[float] = []

    def save(self, running: trainer.Trainer) -> str:
        time.sleep(self._seconds)  # the steps of the training, on a GPU
        began = time.perf_counter()
        path = super().save(running)
        self.stalls.append(time.perf_counter() - began)
        return path

    def on_fit_end(self, running: trainer.Trainer, loop: Any) -> None:
        began = time.perf_counter()
        super().on_fit_end(running, loop)
        self.stalls.append(time.perf_counter() - began)


class _Model(torch.nn.Module):
    """Weights of which a step uses one."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self.layers = torch.nn.ParameterList(torch.rand(2**22) for _ in range(tensors))
        self.used = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.used * batch).sum()


def trained(way: str, root: str, disk: str, arguments: argparse.Namespace) -> list[float]:
    """The same of a Trainer, which saves at each step."""
    local = disk if way.endswith("(local_dir=…)") else None
    saving = _Timed(arguments.seconds, checkpoint_root=root, local_dir=local)
    with tempfile.TemporaryDirectory() as folder:
        trainer.Trainer(
            device="CPU",
            model=lambda: _Model(arguments.mib // 16),
            optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-3),
            loop=trainer.TrainingLoop(max_steps=arguments.saves + _WARM_UPS),
            checkpoint=saving,
            model_dir=folder,
        ).fit([torch.ones(1)] * (arguments.saves + _WARM_UPS))
    return saving.stalls[_WARM_UPS:]


def main(given: Sequence[str] | None = None) -> None:
    """Measure each way in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=SERVERS, default="far-85")
    parser.add_argument("--disk", help="a folder on the disk to measure; by default that of temporary files")
    parser.add_argument("--mib", type=int, default=256, help="of the state, a multiple of 16")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="between two saves")
    arguments = parser.parse_args(given)
    logging.disable(logging.INFO)
    print(f"{arguments.mib} MiB every {arguments.seconds} s, to {SERVERS[arguments.server]}\n")
    print("| | stall of a save in s: median, longest | until all is on the server |\n|---|---:|---:|")
    with running(arguments.server, [], []) as target, tempfile.TemporaryDirectory(dir=arguments.disk) as disk:
        options = {"key": target.access_key, "secret": target.secret_key, "endpoint_url": target.endpoint}
        os.environ.update(target.environment())  # the Trainer's credentials
        for number, (way, meaning) in enumerate(WAYS.items()):
            root = f"s3://{target.bucket}/{number}"
            if way.startswith("Trainer"):
                *stalls, rest = trained(way, root, disk, arguments)
            else:
                *stalls, rest = measured(way, root, disk, options, arguments)
            print(f"| `{way}` {meaning} | {median(stalls):.2f}, {max(stalls):.2f} | {rest:.2f} |")


if __name__ == "__main__":
    exit_on_sigterm()
    main()
