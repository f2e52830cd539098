"""A model filled module by module from a checkpoint on S3, with little more memory than for the model itself.

python examples/stream_into_model.py s3://bucket/folder
"""

import sys

import torch

import fsspec_csx


def main(root: str) -> None:
    """Save a model, and fill another one with its tensors as they arrive."""
    url = f"{root}/model.mdl"
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    fsspec_csx.save({"model": model.state_dict(), "step": 100}, url)

    with torch.device("meta"):
        other = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    for name, tensor in fsspec_csx.stream(url, keys=["model"]):  # device="cuda" also copies them to a GPU
        module, _, parameter = name.removeprefix("model.").rpartition(".")
        setattr(other.get_submodule(module), parameter, torch.nn.Parameter(tensor))
        print(f"filled {module}.{parameter} {tuple(tensor.shape)}")
    print("equal:", all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)))


if __name__ == "__main__":
    main(sys.argv[1])
