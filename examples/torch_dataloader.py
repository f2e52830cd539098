"""A DataLoader whose workers, forked or spawned, read the samples of a map-style dataset from s3://.

python examples/torch_dataloader.py s3://bucket/folder
"""

import sys

import fsspec
import torch
from torch.utils.data import DataLoader, Dataset


class Samples(Dataset[torch.Tensor]):
    """One sample in each object of a folder.

    Args:
        root: URL of the folder.
    """

    def __init__(self, root: str) -> None:
        self.filesystem, folder = fsspec.url_to_fs(root)
        self.paths = self.filesystem.find(folder)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with self.filesystem.open(self.paths[index], "rb") as file:
            return torch.load(file)  # type: ignore[no-any-return]


def main(root: str) -> None:
    """Store some samples, and load them in batches with workers of each kind."""
    for index in range(8):
        with fsspec.open(f"{root}/samples/{index}.pt", "wb") as file:
            torch.save(torch.full((4,), float(index)), file)

    for method in ("fork", "spawn"):
        loader = DataLoader(Samples(f"{root}/samples"), batch_size=4, num_workers=1, multiprocessing_context=method)
        print(f"{method}: batches add up to {[batch.sum().item() for batch in loader]}")


if __name__ == "__main__":
    main(sys.argv[1])
