"""torch.save and torch.load with files at s3:// URLs, and safetensors with their bytes.

python examples/torch_files.py s3://bucket/folder
"""

import sys

import fsspec
import safetensors.torch
import torch


def main(root: str) -> None:
    """Save the weights of a model in both formats, and load them."""
    state = torch.nn.Linear(64, 64).state_dict()
    with fsspec.open(f"{root}/model.pt", "wb") as file:
        torch.save(state, file)  # after an error here, the old object stays
    with fsspec.open(f"{root}/model.safetensors", "wb") as file:
        file.write(safetensors.torch.save(state))

    with fsspec.open(f"{root}/model.pt", "rb") as file:
        loaded = torch.load(file)
    with fsspec.open(f"{root}/model.safetensors", "rb") as file:
        again = safetensors.torch.load(file.read())
    print("torch:", all(torch.equal(state[name], loaded[name]) for name in state))
    print("safetensors:", all(torch.equal(state[name], again[name]) for name in state))


if __name__ == "__main__":
    main(sys.argv[1])
