"""Sharded checkpoints: each library's storage for torch.distributed.checkpoint, in processes that share tensors.

Each of the two processes has some rows of every tensor, as DTensors. For "columns", each process loads some columns of
the tensors that were saved by rows. An operation is measured from barrier to barrier, with the processor time and the
extra memory of all processes. So is a load of one file that every process needs completely.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from cases import WARM_UP as FIRST
from cases import Case, State, difference
from target import Target
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from usage import cpu_seconds, extra_memory

if TYPE_CHECKING:
    from measure import Result, Task

RANKS = 2
_WARM_UP = Case("warm-up", tensors=1, size=2**18)
_COLUMNS = 1024
_LIMIT = timedelta(seconds=120)


class OursSharded:
    """``fsspec_csx.distributed``."""

    settings = "parts of 8 MiB or more, up to 128 in flight in each rank"

    def __init__(self, target: Target) -> None:
        from fsspec_csx import distributed

        self.save, self.load = distributed.save, distributed.load


class _Storage:
    """A storage of torch.distributed.checkpoint, which torch's own functions save to and load from."""

    writer: Callable[..., Any]
    reader: Callable[..., Any]

    def save(self, state: dict[str, DTensor], path: str) -> None:
        """Save at an S3 URL."""
        state_dict_saver.save(state, storage_writer=self.writer(path=path))

    def load(self, state: dict[str, DTensor], path: str) -> None:
        """Fill with what is at an S3 URL."""
        state_dict_loader.load(state, storage_reader=self.reader(path=path))


class FsspecSharded(_Storage):
    """torch's ``FsspecWriter`` and ``FsspecReader``, on s3fs."""

    settings = "of s3fs"

    def __init__(self, target: Target) -> None:
        import fsspec
        import s3fs
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

        fsspec.register_implementation("s3", s3fs.S3FileSystem, clobber=True)
        self.writer = partial(FsspecWriter, sync_files=False)  # or it syncs the disks of the machine
        self.reader = FsspecReader


class ConnectorSharded(_Storage):
    """``S3StorageWriter`` and ``S3StorageReader`` of s3torchconnector."""

    settings = "of s3torchconnector"

    def __init__(self, target: Target) -> None:
        from s3torchconnector import S3ClientConfig
        from s3torchconnector.dcp import S3StorageReader, S3StorageWriter

        config = S3ClientConfig(force_path_style=True)
        self.writer = partial(S3StorageWriter, target.region, s3client_config=config)
        self.reader = partial(S3StorageReader, target.region, s3client_config=config)


class Whole:
    """``fsspec_csx.load`` of a file in every rank, by each for itself or once for all of them."""

    settings = "up to 128 requests in flight in each rank"

    def __init__(self, target: Target, *, once: bool) -> None:
        self._once = once

    def load(self, path: str) -> Any:
        """Load the file at an S3 URL."""
        import fsspec_csx

        return fsspec_csx.load(path, group=dist.group.WORLD if self._once else None)


def run(client: Any, task: Task) -> Result:
    """Run a task in this rank; what all ranks took, as the first rank knows it."""
    mesh = _joined()
    try:
        own = f"s3://{task.target.bucket}/by-{task.peer}-"
        there = f"s3://{task.target.bucket}/"
        if isinstance(client, Whole):
            return _run_whole(client, task, there)
        kind = "sharded"
        if task.operation == "save":
            state = _state(_WARM_UP, mesh, 0, filled=True)
            client.save(state, own + _WARM_UP.key(kind))
            state = _state(task.case, mesh, 0, filled=True)
            return _measured(lambda: client.save(state, own + task.case.key(kind)), client.settings)
        dimension = int(task.operation == "columns")
        client.load(_state(_WARM_UP, mesh, dimension, filled=False), there + _WARM_UP.key(kind))
        state = _state(task.case, mesh, dimension, filled=False)
        found = _measured(lambda: client.load(state, there + task.case.key(kind)), client.settings)
        if task.check:
            for name, tensor in _state(task.case, mesh, dimension, filled=True).items():
                if not torch.equal(tensor.to_local(), state[name].to_local()):
                    raise ValueError(f"the values of {name} differ")
        return found
    finally:
        dist.destroy_process_group()


def _run_whole(client: Whole, task: Task, there: str) -> Result:
    client.load(there + FIRST.key("torch"))
    loaded: list[State] = []
    path = there + task.case.key("torch")
    found = _measured(lambda: loaded.append(client.load(path)), client.settings, task.case.nbytes)
    return replace(found, error=difference(task.case.state(), loaded[0])) if task.check else found


def _joined() -> DeviceMesh:
    """The ranks, as the environment says who this is and where they meet."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", f"file://{os.environ['MEET']}", rank=rank, world_size=size, timeout=_LIMIT)
    return init_device_mesh("cpu", (size,))


def _state(case: Case, mesh: DeviceMesh, dimension: int, *, filled: bool) -> dict[str, DTensor]:
    """The tensors, of which this process has its rows or its columns."""
    own = [case.size // (4 * _COLUMNS), _COLUMNS]
    own[dimension] //= mesh.size()
    first = mesh.get_local_rank() * own[dimension]
    made = {}
    for number in range(case.tensors):
        local = torch.zeros(own)
        if filled:
            rows = torch.arange(own[0])[:, None] + (first if dimension == 0 else 0)
            columns = torch.arange(own[1])[None] + (first if dimension == 1 else 0)
            local.copy_(rows * _COLUMNS + columns + number)
        made[f"layers.{number}.weight"] = DTensor.from_local(local, mesh, [Shard(dimension)], run_check=False)
    return made


def _measured(operation: Callable[[], object], settings: str, own: int = 0) -> Result:
    """Measure in all ranks; ``own`` is the memory in bytes of what a rank loads."""
    from measure import Result

    gc.collect()
    gc.freeze()  # see measure.py
    dist.barrier()
    with extra_memory() as extra:
        cpu, start = cpu_seconds(), time.perf_counter()
        operation()
        dist.barrier()
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    taken = torch.tensor([cpu, extra[0] - own if extra else math.nan], dtype=torch.float64)
    dist.all_reduce(taken)
    cpu, most = taken.tolist()
    return Result(seconds, cpu, None if math.isnan(most) else int(most), settings=settings)


def write(folder: Path, case: Case) -> None:
    """Write a checkpoint for the loads to a local folder, by torch's own writer, in a process for each rank."""
    meet, pids = folder.with_suffix(".meet"), []
    for rank in range(RANKS):
        if not (pid := os.fork()):
            os.environ.update(RANK=str(rank), WORLD_SIZE=str(RANKS), MEET=str(meet))
            status = 1
            try:
                writer = FileSystemWriter(folder, sync_files=False)
                state_dict_saver.save(_state(case, _joined(), 0, filled=True), storage_writer=writer)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    if any(statuses):
        msg = f"The checkpoint {folder} cannot be written."
        raise RuntimeError(msg)
    meet.unlink(missing_ok=True)


def main() -> None:
    """Write the checkpoints ``NAME TENSORS SIZE`` of the command line, and that of the warm-up, below a folder."""
    root, *numbers = sys.argv[1:]
    cases = [Case(name, int(tensors), int(size)) for name, tensors, size in zip(*[iter(numbers)] * 3, strict=True)]
    for case in (_WARM_UP, *cases):
        write(Path(root) / case.key("sharded"), case)


if __name__ == "__main__":
    main()
