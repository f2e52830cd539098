"""A Hugging Face Trainer whose checkpoints are copied to an s3:// URL; it resumes from the newest one there.

python examples/huggingface_trainer.py s3://bucket/folder
"""

import sys
import tempfile
from pathlib import Path

import fsspec
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

LAST = "trainer_state.json"
"""The file of a checkpoint that is uploaded last: a folder with this file is complete."""


class Uploading(TrainerCallback):
    """Copies each checkpoint to another filesystem as soon as it is written.

    Args:
        root: URL of the folder for all checkpoints.
    """

    def __init__(self, root: str) -> None:
        self.filesystem, self.folder = fsspec.url_to_fs(root)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Copy the new checkpoint."""
        if not state.is_world_process_zero:
            return
        local = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        remote = f"{self.folder}/{local.name}"
        if self.filesystem.exists(f"{remote}/{LAST}"):
            self.filesystem.rm_file(f"{remote}/{LAST}")
        files = sorted(local.rglob("*"), key=lambda path: path.name == LAST)
        for path in filter(Path.is_file, files):
            self.filesystem.put_file(str(path), f"{remote}/{path.relative_to(local).as_posix()}")

    def fetch_newest(self, output_dir: str) -> str | None:
        """Download the newest complete checkpoint.

        Returns:
            Its folder below ``output_dir``, or None if there is none yet.
        """
        whole = [Path(path).parent for path in self.filesystem.glob(f"{self.folder}/{PREFIX_CHECKPOINT_DIR}-*/{LAST}")]
        if not whole:
            return None
        newest = max(whole, key=lambda path: int(path.name.rsplit("-", 1)[1]))
        local = f"{output_dir}/{newest.name}"
        self.filesystem.get(f"{newest}/", f"{local}/", recursive=True)
        return local


class Model(torch.nn.Linear):
    """Learns to reproduce its batch."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Return the loss of a batch of shape (samples, features)."""
        return {"loss": (super().forward(x) - x).square().mean()}


def train(root: str, steps: int) -> None:
    """Train up to a step, from the newest checkpoint if there is one."""
    uploading = Uploading(f"{root}/huggingface")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, save_steps=2, save_total_limit=1, report_to="none", use_cpu=True, disable_tqdm=True
        )
        samples = [{"x": sample} for sample in torch.randn(64, 8)]
        trainer = Trainer(Model(8, 8), arguments, train_dataset=samples, callbacks=[uploading])
        resumed = uploading.fetch_newest(folder)
        trainer.train(resume_from_checkpoint=resumed)
    print(f"step {trainer.state.global_step}, begun from {Path(resumed).name if resumed else 'nothing'}")


def main(root: str) -> None:
    """Train twice; the second trainer has only the checkpoints of the first, as on another machine."""
    train(root, steps=4)
    train(root, steps=6)


if __name__ == "__main__":
    main(sys.argv[1])
