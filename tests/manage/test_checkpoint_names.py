"""Which names are those of checkpoints, manifests, shards and leftovers, and the steps and times in them."""

from __future__ import annotations

import pytest

from fsspec_csx.manage import contents, naming
from fsspec_csx.storage.atomic import is_temporary, temporary_path

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint_100.mdl", 100),
        ("checkpoint_0.mdl", 0),
        ("checkpoint_100_20260101_120000.mdl", 100),
        ("checkpoint-500", 500),
        ("run/2/checkpoint_7.pt", 7),
        ("run_2/model.pt", None),
        ("epoch=1-step=100.ckpt", 100),
        ("global_step40", 40),
        ("100.mdl", 100),
        ("100.safetensors.mdl", 100),
        ("model.mdl", None),
        ("model-v2.mdl", None),
        ("checkpoint_20260101_120000.mdl", None),
        ("20260101_120000.mdl", None),
        (f"checkpoint_{10**30}.mdl", None),
    ],
)
def test_step(name: str, step: int | None) -> None:
    """The step is the number after a known word, or alone, and no date."""
    assert naming.step_of(name) == step


def test_stamp() -> None:
    """A moment at the end of a name is no step."""
    assert naming.parse_name("run/checkpoint_100_20260101_120000.mdl").timestamp == "20260101_120000"
    assert naming.parse_name("run/checkpoint_100.mdl").timestamp == ""


@pytest.mark.parametrize("name", ["x.mdl", "x.pt", "x.pth", "x.bin", "x.ckpt", "x.safetensors", "a b#?*.mdl"])
def test_checkpoints(name: str) -> None:
    """The end of a name says that a file is a checkpoint, and not its whole."""
    assert contents.is_checkpoint(name)
    assert not contents.is_checkpoint(f"{name}.txt")
    assert not contents.is_checkpoint(f".{name}.0123456789abcdef.tmp")


@pytest.mark.parametrize("name", ["__0_0.distcp", "model-00001-of-00002.safetensors", "model-00001-of-00002.bin"])
def test_parts_are_no_checkpoints(name: str) -> None:
    """A part is of no use alone."""
    assert contents.is_shard(name)
    assert not contents.is_checkpoint(name)


def test_manifests() -> None:
    """A folder is a checkpoint by one of its files."""
    assert contents.is_checkpoint_folder(["__0_0.distcp", ".metadata"])
    assert contents.is_checkpoint_folder(["model.safetensors.index.json"])
    assert not contents.is_checkpoint_folder(["__0_0.distcp", "metadata", "index.json", ".metadata.tmp"])


def test_leftovers() -> None:
    """Temporary names of all writers are known, and nothing that a user would choose."""
    for name in (
        temporary_path("/run/x.mdl", TOKEN),
        temporary_path("/run/" + "x" * 250, TOKEN),
        "/run/x.mdl.0123456789abcdef.tmp",
    ):
        assert is_temporary(name.rpartition("/")[2])
    for name in ("x.mdl", "x.tmp", ".x.mdl.tmp", "x.0123456789ABCDEF.tmp", "0123456789abcdef.tmp", ".x.0123.tmp"):
        assert not is_temporary(name)
