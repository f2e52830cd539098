"""PyTorch's distributed checkpoints at s3:// URLs, with torch's own fsspec writer and reader.

python examples/torch_distributed_checkpoint.py s3://bucket/folder
torchrun --nproc-per-node 2 examples/torch_distributed_checkpoint.py s3://bucket/folder
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def make_model() -> torch.nn.Module:
    """Return a model; if there are several processes, each has a shard of it."""
    model = torch.nn.Linear(64, 64)
    if dist.is_initialized():
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def main(root: str) -> None:
    """Save a model, and load it into another."""
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    path = f"{root}/step_100"
    model = make_model()
    # Closed files are already stored. os.sync is not needed, and would wait for every local disk.
    save(model.state_dict(), storage_writer=FsspecWriter(path, sync_files=False))

    other = make_model()
    state = other.state_dict()
    load(state, storage_reader=FsspecReader(path))
    other.load_state_dict(state)
    batch = torch.ones(1, 64)
    print("equal:", torch.equal(model(batch), other(batch)))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
