"""A checkpoint that is downloaded from s3:// once, and then read from a cache on the node's disk.

python examples/local_cache.py s3://bucket/folder
"""

import sys
import tempfile

import torch

import fsspec_csx as cstorch


def main(root: str) -> None:
    """Save a checkpoint, and load it twice through a cache, the second time without a download."""
    url = f"{root}/model.mdl"
    cstorch.save({"weight": torch.arange(6.0).reshape(2, 3)}, url)

    # Choose a folder on a fast local disk. All processes of the node may share it.
    with tempfile.TemporaryDirectory() as folder:
        options = {"cache_dir": folder, "cache_size": "50GB"}
        for attempt in ("first", "second"):
            state = cstorch.load(url, storage_options=options)
            print(f"{attempt} load: the weights add up to {state['weight'].sum().item()}")


if __name__ == "__main__":
    main(sys.argv[1])
