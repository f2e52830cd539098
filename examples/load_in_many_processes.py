"""Many processes load one checkpoint, which is read from S3 only once.

torchrun --nproc-per-node 2 examples/load_in_many_processes.py s3://bucket/folder
"""

import os
import sys

import torch
import torch.distributed as dist

import fsspec_csx


def main(root: str) -> None:
    """Save a model in one process, and load it in all processes."""
    if "RANK" not in os.environ:  # without torchrun: a group of only this process
        os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("gloo")
    path = f"{root}/model.pt"
    model = torch.nn.Linear(64, 64)
    if dist.get_rank() == 0:
        fsspec_csx.save(model.state_dict(), path)
    dist.barrier()

    # Every process must call load; each reads a part of the bytes and sends it to the others.
    fsspec_csx.load(path, into=model.state_dict(), group=dist.group.WORLD)
    sums = [torch.zeros(()) for _ in range(dist.get_world_size())]
    dist.all_gather(sums, model.weight.detach().sum())
    print("the same in all processes:", all(torch.equal(each, sums[0]) for each in sums))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
