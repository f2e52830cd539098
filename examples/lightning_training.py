"""Lightning saves its checkpoints at an s3:// URL, and resumes from the last one.

python examples/lightning_training.py s3://bucket/folder
"""

import sys

import fsspec
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader


class Model(lightning.LightningModule):
    """Learns to reproduce its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch of shape (samples, 8)."""
        return torch.nn.functional.mse_loss(self.layer(batch), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer, whose state is part of each checkpoint."""
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def train(root: str, epochs: int) -> None:
    """Train up to an epoch, from the last checkpoint if there is one."""
    checkpoints = ModelCheckpoint(f"{root}/lightning", filename="{epoch}", save_top_k=-1, save_last=True)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[checkpoints],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader: DataLoader[torch.Tensor] = DataLoader([*torch.randn(32, 8)], batch_size=8)  # type: ignore[arg-type]
    # With ckpt_path="last" Lightning would look for the names on the local disk, and start a new training.
    last = f"{root}/lightning/last.ckpt"
    filesystem, path = fsspec.url_to_fs(last)
    resumed = last if filesystem.exists(path) else None
    trainer.fit(Model(), loader, ckpt_path=resumed)
    print(f"step {trainer.global_step}, begun from {resumed or 'nothing'}")


def main(root: str) -> None:
    """Train twice; the second trainer has only the checkpoints of the first, as on another machine."""
    train(root, epochs=1)
    train(root, epochs=3)


if __name__ == "__main__":
    main(sys.argv[1])
