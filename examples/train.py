"""What ``train.yaml`` names: a model that returns its loss, and the batches that it takes."""

import torch
from torch.utils.data import DataLoader


class Autoencoder(torch.nn.Module):
    """Gives back its batch, through a narrow layer.

    Args:
        width: numbers in a sample.
        hidden: numbers that are to tell all of it.
    """

    def __init__(self, width: int, hidden: int = 4) -> None:
        super().__init__()
        self.narrow = torch.nn.Linear(width, hidden)
        self.wide = torch.nn.Linear(hidden, width)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss, and the largest error of a batch of shape (samples, width)."""
        error = self.wide(torch.relu(self.narrow(batch))) - batch
        return {"loss": error.square().mean(), "largest_error": error.abs().max()}


def loader(
    batch_size: int, samples: int, width: int = 16, seed: int = 1, shuffle: bool = True
) -> DataLoader[torch.Tensor]:
    """Batches of waves with random phases, as samples of shape (width,)."""
    phases = torch.rand(samples, 1, generator=torch.Generator().manual_seed(seed)) * 2 * torch.pi
    waves = torch.sin(phases + torch.arange(width))
    return DataLoader([*waves], batch_size=batch_size, shuffle=shuffle)  # type: ignore[arg-type]
