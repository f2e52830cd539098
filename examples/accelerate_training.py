"""Accelerate saves its state to a local folder, which is uploaded to an s3:// URL and downloaded again.

python examples/accelerate_training.py s3://bucket/folder
"""

import sys
import tempfile

import fsspec
import torch
from accelerate import Accelerator


def prepare(accelerator: Accelerator) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a model and its optimizer, which the accelerator saves and loads."""
    model = torch.nn.Linear(8, 8)
    return accelerator.prepare(model, torch.optim.AdamW(model.parameters()))  # type: ignore[no-any-return]


def main(root: str) -> None:
    """Train a step and save; then load into new objects, as on another machine."""
    filesystem, folder = fsspec.url_to_fs(f"{root}/accelerate/step_1")
    accelerator = Accelerator(cpu=True)
    model, optimizer = prepare(accelerator)
    accelerator.backward(model(torch.ones(4, 8)).square().mean())
    optimizer.step()
    with tempfile.TemporaryDirectory() as local:
        accelerator.save_state(local)
        if accelerator.is_main_process:
            filesystem.put(f"{local}/", f"{folder}/", recursive=True)

    accelerator = Accelerator(cpu=True)
    other, _ = prepare(accelerator)
    with tempfile.TemporaryDirectory() as local:
        filesystem.get(f"{folder}/", f"{local}/", recursive=True)
        accelerator.load_state(local)
    print("equal:", all(map(torch.equal, model.parameters(), other.parameters())))


if __name__ == "__main__":
    main(sys.argv[1])
