"""A sharded model that is saved in the background while all processes continue to train.

python examples/sharded_async_save.py s3://bucket/folder
torchrun --nproc-per-node 2 examples/sharded_async_save.py s3://bucket/folder
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fsspec_csx import distributed


def main(root: str) -> None:
    """Save a model twice while it changes, and load the second checkpoint."""
    model = torch.nn.Linear(64, 64)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    saves = []
    for step in (100, 200):
        torch.nn.init.constant_(model.weight, step)
        saves.append(distributed.async_save(model.state_dict(), f"{root}/step_{step}"))
    torch.nn.init.zeros_(model.weight)  # the training continues
    for each in saves:
        each.result()  # raises an error of any process
    state = model.state_dict()
    distributed.load(state, f"{root}/step_200")
    model.load_state_dict(state)
    print("loaded:", distributed.whole(f"{root}/step_100")["weight"].mean().item())
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
