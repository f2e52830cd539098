"""Checkpoints that are saved to a local disk first, and uploaded from there while the training continues.

python examples/local_disk.py s3://bucket/folder [/nvme/checkpoints]
"""

import sys
import tempfile

import torch

import fsspec_csx


def main(root: str, disk: str) -> None:
    """Train and save; then resume from the local disk, like a restart on the same machine."""
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(1, 301):
        optimizer.zero_grad()
        (model(torch.ones(8, 64)) - 1).square().mean().backward()
        optimizer.step()
        if step % 100 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            future = fsspec_csx.async_save(state, f"{root}/checkpoint_{step}.pt", local=disk, keep_local=2)
    future.result()  # waits for all uploads; future.local.result() waits only for the local disk

    fsspec_csx.save(model.state_dict(), f"{root}/final.pt", local=disk)  # returns when both are complete

    checkpoint = fsspec_csx.load(f"{root}/checkpoint_300.pt", local=disk)
    print("resumed at step", checkpoint["step"])
    print("equal:", torch.equal(checkpoint["model"]["weight"], model.weight))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
