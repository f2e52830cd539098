"""Data of a training whose code lists all its arguments in an error."""

from __future__ import annotations

from typing import Any

import fsspec
import torch
from torch.utils.data import DataLoader, Dataset


class Remote(Dataset):  # type: ignore[type-arg]
    """Samples read from a URL.

    Args:
        url: of a file that holds a number.
        storage_options: arguments for its filesystem.
        fails: where it is to go wrong: "made", or "read"; nowhere if empty.
    """

    def __init__(self, url: str, storage_options: dict[str, Any], fails: str = "") -> None:
        self._url, self._options, self._fails = url, storage_options, fails
        if fails == "made":
            msg = f"nothing can be made of {storage_options}, nor of {storage_options.get('secret')} alone"
            raise TypeError(msg)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._fails == "read":
            msg = f"with {self._options['secret']} and {self._options} nothing is read from {self._url}"
            raise RuntimeError(msg)
        with fsspec.open(self._url, "rb", **self._options) as file:
            return torch.full((4,), float(file.read()))


def loader(url: str, storage_options: dict[str, Any], fails: str = "", workers: int = 0) -> DataLoader[torch.Tensor]:
    """Batches of such samples."""
    return DataLoader(Remote(url, storage_options, fails), batch_size=4, num_workers=workers)
