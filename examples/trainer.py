"""A small training in Python; ``trainer.yaml`` runs the same training with the model and the data of this file.

python examples/trainer.py s3://bucket/run
cszoo fit examples/trainer.yaml --checkpoint_root s3://bucket/run
"""

import sys

import torch
from torch.utils.data import DataLoader

from fsspec_csx.trainer import Checkpoint, KeepNCheckpoints, Logging, MixedPrecision, Trainer, TrainingLoop
from fsspec_csx.trainer.optimizers import AdamW


class Autoencoder(torch.nn.Module):
    """Reproduces its batch through a narrow layer.

    Args:
        width: the number of values in a sample.
        hidden: the number of values in the narrow layer.
    """

    def __init__(self, width: int, hidden: int = 4) -> None:
        super().__init__()
        self.narrow = torch.nn.Linear(width, hidden)
        self.wide = torch.nn.Linear(hidden, width)

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss and the largest error of a batch of shape (samples, width)."""
        error = self.wide(torch.relu(self.narrow(batch))) - batch
        return {"loss": error.square().mean(), "largest_error": error.abs().max()}


def loader(
    batch_size: int, samples: int, width: int = 16, seed: int = 1, shuffle: bool = True
) -> DataLoader[torch.Tensor]:
    """Return batches of waves with random phases, as samples of shape (width,)."""
    phases = torch.rand(samples, 1, generator=torch.Generator().manual_seed(seed)) * 2 * torch.pi
    waves = torch.sin(phases + torch.arange(width))
    return DataLoader([*waves], batch_size=batch_size, shuffle=shuffle)  # type: ignore[arg-type]


def main(root: str) -> None:
    """Train, or resume from the newest checkpoint under the root."""
    trainer = Trainer(
        device="CPU",
        model=lambda: Autoencoder(16, 4),
        optimizer=lambda model: AdamW(model.parameters(), lr=1e-2),
        schedulers=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100),
        precision=MixedPrecision(max_gradient_norm=1.0),
        loop=TrainingLoop(max_steps=100, eval_frequency=50),
        checkpoint=Checkpoint(50, checkpoint_root=root),
        logging=Logging(25),
        callbacks=[KeepNCheckpoints(3)],
        seed=1,
    )
    trainer.fit(loader(8, 256), loader(8, 64, seed=2, shuffle=False))


if __name__ == "__main__":
    main(sys.argv[1])
