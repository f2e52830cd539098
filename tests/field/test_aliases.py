"""Tied tensors in safetensors files: load restores the names that safetensors.torch.save_model leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as official
import torch

from fsspec_csx import inspect, load, save
from fsspec_csx.manage.convert import convert
from fsspec_csx.testing.example_values import same


class Tied(torch.nn.Module):
    """A model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def model() -> Tied:
    """A model."""
    return Tied()


@pytest.fixture
def path(tmp_path: Path, model: Tied) -> str:
    """What the official library writes of it."""
    official.save_model(model, str(tmp_path / "x.safetensors"))
    return str(tmp_path / "x.safetensors")


def state_of(model: Tied) -> dict[str, Any]:
    return {name: value.detach() for name, value in model.state_dict().items()}


def test_load_returns_both_names(path: str, model: Tied) -> None:
    """All names are there, and tensors that were one are one."""
    found = load(path)
    assert same(found, state_of(model))
    assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()
    assert set(inspect(path).tensors) == set(state_of(model))
    for name in state_of(model):
        assert same(load(path, keys=[name]), {name: state_of(model)[name]})
    other = Tied()
    load(path, into=other.state_dict())
    assert same(state_of(other), state_of(model))


def test_they_stay_one_elsewhere(path: str, model: Tied) -> None:
    """They are one on another device too."""
    seen = []
    found = load(path, map_location=lambda storage, location: seen.append(location) or storage)
    assert found["head.weight"] is found["embedding.weight"]
    assert len(seen) == 1
    assert same(found, state_of(model))


def test_converted_files_have_them(path: str, tmp_path: Path, model: Tied) -> None:
    """They stay aliases in a safetensors file, are tied in a torch file, and a name that is chosen alone is there."""
    convert(path, tmp_path / "y.safetensors")
    assert len(official.load_file(tmp_path / "y.safetensors")) == 1
    assert same(load(tmp_path / "y.safetensors"), state_of(model))
    again = Tied()
    official.load_model(again, str(tmp_path / "y.safetensors"))
    assert same(state_of(again), state_of(model))
    convert(path, tmp_path / "y.mdl")
    found = load(tmp_path / "y.mdl")
    assert found["head.weight"].data_ptr() == found["embedding.weight"].data_ptr()
    for name in state_of(model):
        convert(path, tmp_path / "part.safetensors", keys=[name], overwrite=True)
        assert same(load(tmp_path / "part.safetensors"), {name: state_of(model)[name]})


def test_other_metadata_is_no_alias(tmp_path: Path) -> None:
    """Metadata that names no tensor of the file, or is of a name that is there, means nothing."""
    report = {"format": "pt", "trained": "yes", "w": "v", "lost": "gone"}
    official.save_file(
        {"w": torch.ones(1), "v": torch.zeros(1), "pt": torch.ones(2)}, tmp_path / "x.safetensors", report
    )
    assert set(load(tmp_path / "x.safetensors")) == {"w", "v", "pt"}


def test_save_refuses_tied_tensors(tmp_path: Path, model: Tied) -> None:
    """The official save_file refuses them too; both names are said."""
    with pytest.raises(ValueError, match=r"'embedding\.weight' and 'head\.weight'"):
        save(state_of(model), tmp_path / "new" / "x.safetensors")
    assert not (tmp_path / "new").exists()
