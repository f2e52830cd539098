"""Operations of victims that are one process of many; each function gets its rank, their number and their address."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from training import Noisy, made
from training_job import sharded_model
from victims import state

from fsspec_csx import distributed
from fsspec_csx.distributed import StorageWriter
from fsspec_csx.trainer import Checkpoint

SECONDS = 20
"""After which a process no longer waits for another one."""


@contextlib.contextmanager
def _joined(rank: int, ranks: int, meeting: str) -> Iterator[None]:
    """Be one of so many processes, which meet by a file."""
    torch.set_num_threads(1)
    waits = timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=waits)
    yield
    dist.destroy_process_group()


def _sharded(seed: int) -> dict[str, Any]:
    """The state of a seed, of whose largest tensor each process has rows."""
    whole = state(seed)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    own = whole["large"].chunk(dist.get_world_size())[dist.get_rank()].clone()
    return {**whole, "large": DTensor.from_local(own, mesh, [Shard(0)], run_check=False)}


def save(rank: int, ranks: int, meeting: str, path: str, seed: int) -> None:
    """Save a checkpoint, each its part."""
    with _joined(rank, ranks, meeting):
        distributed.save(_sharded(seed), path)


def async_save(rank: int, ranks: int, meeting: str, path: str, seed: int) -> None:
    """Save one in the background by torch's own call."""
    with _joined(rank, ranks, meeting):
        saving = dcp.async_save(_sharded(seed), storage_writer=StorageWriter(path), process_group=dist.new_group())
        assert not isinstance(saving, dcp.state_dict_saver.AsyncSaveResponse)
        saving.result()


def train(rank: int, ranks: int, meeting: str, root: str, steps: int, sharded: bool) -> None:
    """Train a sharded model up to a step, with a checkpoint at every second step; or resume."""
    with _joined(rank, ranks, meeting):
        data: DataLoader[torch.Tensor] = DataLoader(
            Noisy(), batch_size=2, sampler=DistributedSampler(Noisy(), seed=3, num_replicas=ranks, rank=rank)
        )
        checkpoint = Checkpoint(2, checkpoint_root=root, sharded=sharded)
        loop = {"max_steps": steps, "eval_frequency": 0}
        trainer, _ = made(root, checkpoint=checkpoint, model=sharded_model, loop=loop)
        trainer.fit(data)
