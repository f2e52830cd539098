"""How long saves stop a training, with and without a local disk: ``python tests/benchmarks/training_stalls.py``."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from servers import SERVERS, running

import fsspec_csx

WAYS = {
    "save": "waits until the checkpoint is on the server",
    "async_save": "waits for the copy in memory, and for the upload before",
    "async_save(local=…)": "waits for the copy in memory, and for the local file before",
}


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
    for step in range(arguments.saves + 2):
        time.sleep(arguments.seconds)  # the steps of the training, on a GPU
        began = time.perf_counter()
        save(state, f"{root}/{step}.mdl")
        stalls.append(time.perf_counter() - began)
    began = time.perf_counter()
    finish()
    return [*stalls[2:], time.perf_counter() - began]


def main() -> None:
    """Measure each way in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", choices=SERVERS, default="far-85")
    parser.add_argument("--disk", help="a folder on the disk to measure; by default that of temporary files")
    parser.add_argument("--mib", type=int, default=256, help="of the state, a multiple of 16")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="between two saves")
    arguments = parser.parse_args()
    print(f"{arguments.mib} MiB every {arguments.seconds} s, to {SERVERS[arguments.server]}\n")
    print("| | stall of a save in s: median, longest | until all is on the server |\n|---|---:|---:|")
    with running(arguments.server, [], []) as target, tempfile.TemporaryDirectory(dir=arguments.disk) as disk:
        options = {"key": target.access_key, "secret": target.secret_key, "endpoint_url": target.endpoint}
        for number, (way, meaning) in enumerate(WAYS.items()):
            *stalls, rest = measured(way, f"s3://{target.bucket}/{number}", disk, options, arguments)
            print(f"| `{way}` {meaning} | {median(stalls):.2f}, {max(stalls):.2f} | {rest:.2f} |")


if __name__ == "__main__":
    main()
