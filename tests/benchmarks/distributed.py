"""Sharded checkpoints: ours against torch's own storage, on our filesystem and on s3fs, and against s3torchconnector's.

    python tests/benchmarks/distributed.py

Each process of ``torchrun`` has its part of every tensor (DTensors); a save and a load are measured from barrier to
barrier, on LocalS3. "load, columns" is that of a state dict which is sharded otherwise than what was saved. Installed
besides: ``s3torchconnector[dcp]``, where it is to be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import fsspec
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from fsspec_csx.testing import LocalS3

_MIB = 2**20
_MEMORY = Path("/dev/shm")
_OPERATIONS = ("save", "load", "load, columns")
_SEED = 1
_BUCKET = "benchmark"
_TIMEOUT = 600
_SHOWN = 2000


@dataclass(frozen=True)
class Case:
    """So many tensors of so many rows of 1024 numbers of 4 bytes, sharded by rows."""

    name: str
    tensors: int
    rows: int

    @property
    def nbytes(self) -> int:
        """Of all tensors together."""
        return self.tensors * self.rows * 4096


_CASES = (Case("large", 32, 4096), Case("small", 1000, 16))


class Ours:
    """``fsspec_csx.distributed``."""

    def __init__(self) -> None:
        from fsspec_csx import distributed

        self.writer, self.reader = distributed.StorageWriter, distributed.StorageReader


class Torch:
    """``FsspecWriter`` and ``FsspecReader`` on our filesystem."""

    def __init__(self) -> None:
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

        self.writer = lambda path: FsspecWriter(path, sync_files=False)  # or it syncs the disks of the machine
        self.reader = FsspecReader


class TorchOnS3fs(Torch):
    """The same on s3fs."""

    def __init__(self) -> None:
        import fsspec
        import s3fs

        super().__init__()
        fsspec.register_implementation("s3", s3fs.S3FileSystem, clobber=True)


class S3TorchConnector:
    """``S3StorageWriter`` and ``S3StorageReader``."""

    def __init__(self) -> None:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

        config = S3ClientConfig(force_path_style=True)
        self.writer = lambda path: S3StorageWriter("us-east-1", path, s3client_config=config)
        self.reader = lambda path: S3StorageReader("us-east-1", path, s3client_config=config)


_PEERS: dict[str, Callable[[], Any]] = {
    "ours": Ours,
    "torch on ours": Torch,
    "torch on s3fs": TorchOnS3fs,
    "s3torchconnector": S3TorchConnector,
}


# -- what torchrun runs ------------------------------------------------------------------------------------------------


def _work(name: str, root: str) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    peer = _PEERS[name]()
    found = {}
    for case in (Case("warm-up", 1, 64), *_CASES):
        path = f"{root}/{case.name}"
        state = _state(case, mesh, 0, filled=True)
        found[f"{case.name}/save"] = _measured(partial(state_dict_saver.save, state, storage_writer=peer.writer(path)))
        for operation, dimension in (("load", 0), ("load, columns", 1)):
            again = _state(case, mesh, dimension, filled=False)
            found[f"{case.name}/{operation}"] = _measured(
                partial(state_dict_loader.load, again, storage_reader=peer.reader(path))
            )
            for key, tensor in _state(case, mesh, dimension, filled=True).items():
                assert torch.equal(tensor.to_local(), again[key].to_local()), key
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def _state(case: Case, mesh: DeviceMesh, dimension: int, *, filled: bool) -> dict[str, DTensor]:
    """The tensors, of which this process has its rows or its columns."""
    own = [case.rows, 1024]
    own[dimension] //= mesh.size()
    first = mesh.get_local_rank() * own[dimension]
    made = {}
    for number in range(case.tensors):
        local = torch.zeros(own)
        if filled:
            rows = torch.arange(own[0])[:, None] + (first if dimension == 0 else 0)
            columns = torch.arange(own[1])[None] + (first if dimension == 1 else 0)
            local.copy_(rows * 1024 + columns + number)
        made[f"layers.{number}.weight"] = DTensor.from_local(local, mesh, [Shard(dimension)], run_check=False)
    return made


def _measured(operation: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall, and of the CPU in all processes together."""
    gc.collect()
    dist.barrier()
    cpu, start = _cpu_seconds(), time.perf_counter()
    operation()
    dist.barrier()
    seconds = time.perf_counter() - start
    spent = torch.tensor(_cpu_seconds() - cpu)
    dist.all_reduce(spent)
    return seconds, spent.item()


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# -- the rounds --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server() -> Iterator[LocalS3]:
    where = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder, LocalS3(directory=folder) as server:
        yield server


def _run(peer: str, server: LocalS3, processes: int, root: str) -> dict[str, tuple[float, float]]:
    endpoint = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *endpoint]
    environment = {**os.environ, **server.environment(), "OMP_NUM_THREADS": "1"}
    fsspec.filesystem("s3", **server.storage_options()).makedirs(_BUCKET, exist_ok=True)
    environment["AWS_ENDPOINT_URL"] = server.endpoint_url  # s3torchconnector knows no other name
    done = subprocess.run(
        [*command, __file__, "--work", peer, root],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{peer}: {done.stderr[-_SHOWN:]}")
    found: dict[str, tuple[float, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _table(rounds: list[dict[str, dict[str, tuple[float, float]]]]) -> str:
    lines = []
    for case in _CASES:
        lines += [f"{case.name}: {case.tensors} x {case.nbytes / case.tensors / _MIB:g} MiB", ""]
        lines.append("| GB/s (ours is so many times as fast), CPU s/GB | " + " | ".join(_OPERATIONS) + " |")
        lines.append("|---|" + "---:|" * len(_OPERATIONS))
        for peer in rounds[0]:
            cells = [_cell(case, peer, f"{case.name}/{operation}", rounds) for operation in _OPERATIONS]
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(case: Case, peer: str, place: str, rounds: list[dict[str, dict[str, tuple[float, float]]]]) -> str:
    size = case.nbytes / 1e9
    speed = size / statistics.median(found[peer][place][0] for found in rounds)
    cpu = statistics.median(found[peer][place][1] for found in rounds) / size
    ratio = statistics.median(found[peer][place][0] / found["ours"][place][0] for found in rounds)
    return f"{speed:.2f}, {cpu:.1f}" if peer == "ours" else f"{speed:.2f} ({ratio:.1f}x), {cpu:.1f}"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="rounds; 3 if not given")
    parser.add_argument("--processes", type=int, default=2, help="2 if not given")
    parser.add_argument("--work", nargs=2, metavar=("PEER", "ROOT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        _work(*arguments.work)
        return
    peers = list(_PEERS)
    if not all(importlib.util.find_spec(name) for name in ("s3torchconnector", "tenacity")):
        peers.remove("s3torchconnector")
        print("s3torchconnector is not installed.", file=sys.stderr)
    order = random.Random(_SEED)
    rounds = []
    for number in range(arguments.runs):
        found = {}
        for peer in order.sample(peers, len(peers)):
            print(f"round {number + 1} of {arguments.runs}: {peer}", file=sys.stderr)
            with _server() as server:
                found[peer] = _run(peer, server, arguments.processes, f"s3://{_BUCKET}/run")
        rounds.append({peer: found[peer] for peer in peers})
    print(_table(rounds))
    machine = f"{arguments.processes} processes on {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"medians of {arguments.runs}, {machine}")


if __name__ == "__main__":
    main()
