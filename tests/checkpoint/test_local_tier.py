"""Checkpoints that go to a local disk first, and are uploaded from there."""

from __future__ import annotations

from pathlib import Path

import torch

from fsspec_csx import async_save, load
from fsspec_csx.testing import LocalS3


def state(step: int) -> dict[str, object]:
    return {"w": torch.full((1000,), float(step)), "step": step}


def local_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*.mdl"))


def test_saved_on_both_sides(environment: LocalS3, bucket: str, tmp_path: Path) -> None:
    """The local file is whole first; the remote one is the same; the newest stay on the disk."""
    for step in range(1, 6):
        future = async_save(state(step), f"s3://{bucket}/run/{step}.mdl", local=tmp_path, keep_local=2)
        assert future.local is not None
        future.local.result()
        assert load(f"s3://{bucket}/run/{step}.mdl", local=tmp_path)["step"] == step
    future.result()
    assert local_files(tmp_path) == ["4.mdl", "5.mdl"]
    for step in range(1, 6):
        assert load(f"s3://{bucket}/run/{step}.mdl")["step"] == step
