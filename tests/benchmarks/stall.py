"""How long a background save stops the training, until the call returns; for several functions in turn.

    python tests/benchmarks/stall.py --tensors 64 --size 16

The first save of each function allocates memory; of the later ones, the median is given. A plain copy is
``tensor.clone()`` of all tensors. The checkpoints are saved to ``/dev/shm``. The next save starts when the last one has
ended, which is not part of the time. In brackets: how many times as long as with ``fsspec_csx.async_save``.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

import fsspec_csx
from fsspec_csx import distributed

_MEMORY = Path("/dev/shm")
_State = dict[str, torch.Tensor]
_Start = Callable[[_State, Path], Any]


@dataclass
class Row:
    """A way to save, and what was measured, in milliseconds for a GB.

    Attributes:
        name: as the table has it.
        start: begins a save, and returns its future, or what is to be freed.
        found: of each round.
    """

    name: str
    start: _Start
    found: list[float] = field(default_factory=list)

    @property
    def first(self) -> float:
        """The save that touches new memory."""
        return self.found[0]

    @property
    def later(self) -> float:
        """The median of the others."""
        return statistics.median(self.found[1:])


def rows() -> list[Row]:
    """All ways; ours are the first two."""
    kept = DefaultStager(
        StagingOptions(use_async_staging=False) if torch.cuda.is_available() else StagingOptions(*(False,) * 4)
    )

    def by_torch(stager: DefaultStager | None) -> _Start:
        return lambda state, path: state_dict_saver.async_save(
            state, storage_writer=FileSystemWriter(path, sync_files=False), async_stager=stager
        )

    return [
        Row("fsspec_csx.async_save", lambda state, path: fsspec_csx.async_save(state, path / "x.pt")),
        Row("fsspec_csx.distributed.async_save", distributed.async_save),
        Row("torch's dcp.async_save", by_torch(None)),
        Row("torch's dcp.async_save, a stager that is kept", by_torch(kept)),
        Row("a plain copy", lambda state, path: [each.clone() for each in state.values()]),
    ]


def measure(ways: list[Row], tensors: int, size: int, rounds: int, folder: Path) -> None:
    """Save in each way once, and so for all rounds; ``size`` is of a tensor, in bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    state = {str(number): torch.randn(size // 4, device=device) for number in range(tensors)}
    for number in range(-1, rounds):
        for way in ways:
            if number <= 0:
                fsspec_csx.release_buffers()
            saved = state if number >= 0 else {"0": torch.ones(1)}  # at first all that is imported
            place = folder / str(ways.index(way))
            place.mkdir()
            gc.collect()
            began = time.perf_counter()
            started = way.start(saved, place)
            taken = time.perf_counter() - began
            if hasattr(started, "result"):
                started.result()
            del started
            shutil.rmtree(place)
            if number >= 0:
                way.found.append(taken * 1000 / (tensors * size / 1e9))


def table(ways: list[Row]) -> str:
    """The rows as Markdown."""
    ours = ways[0]
    lines = ["| ms/GB that the training waits | the first save | each later one |", "|---|---:|---:|"]
    for way in ways:
        first, later = way.first / ours.first, way.later / ours.later
        lines.append(f"| {way.name} | {way.first:.0f} ({first:.1f}x) | {way.later:.0f} ({later:.1f}x) |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="stall.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tensors", type=int, default=64, help="how many tensors (64)")
    parser.add_argument("--size", type=int, default=16, help="MiB of each (16)")
    parser.add_argument("--rounds", type=int, default=6, help="saves in each way (6)")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    ways = rows()
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        measure(ways, given.tensors, given.size * 2**20, given.rounds, Path(folder))
    print(table(ways))


if __name__ == "__main__":
    main()
