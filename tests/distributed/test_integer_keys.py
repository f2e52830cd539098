"""Integer keys of state dicts in sharded checkpoints."""

from __future__ import annotations

import copy
import pickle
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from fsspec_csx import distributed, load
from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.dcp import manifest
from fsspec_csx.formats.dcp.layout import MANIFEST, ShardedFolder
from fsspec_csx.manage.convert import convert
from fsspec_csx.testing.example_values import same

Number = IntEnum("Number", "ONE")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_integer_keys(tmp_path: Path) -> None:
    """Keys that are integers are integers again, also where tensors share their memory; torch reads the folder too."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    shared = torch.ones(3)
    state = {"optimizer": optimizer.state_dict(), -7: {"a": shared}, "7": [shared, {2**70: {}, "x": {0: "text"}}]}
    distributed.save(state, tmp_path / "x")
    found: dict[Any, Any] = distributed.whole(tmp_path / "x")
    assert same(found, state)
    assert same(load(tmp_path / "x"), state)
    other = torch.optim.Adam(model.parameters())
    other.load_state_dict(found["optimizer"])
    assert same(other.state_dict(), optimizer.state_dict())
    convert(tmp_path / "x", tmp_path / "y", format="distributed")
    assert same(distributed.whole(tmp_path / "y"), state)
    into = {"optimizer": {"state": {1: {"exp_avg": torch.zeros(2)}}}}
    dcp.load(into, checkpoint_id=str(tmp_path / "x"))
    assert same(into["optimizer"]["state"][1]["exp_avg"], optimizer.state_dict()["state"][1]["exp_avg"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("planner", [None, dcp.DefaultLoadPlanner(allow_partial_load=True)])
def test_integer_keys_are_filled(tmp_path: Path, planner: Any) -> None:
    """A load replaces values under integer keys, at the top too, and adds no keys; torch's planner alone adds texts."""
    state = {"s": {0: {"step": 7, "m": torch.ones(2)}, -1: 5, "1": 6}, "l": [torch.ones(1), {3: "x"}]}
    distributed.save({**state, 2: {"x": 3}, 4: torch.ones(2)}, tmp_path / "x")
    empty: dict[Any, Any] = {"s": {0: {"step": 0, "m": torch.zeros(2)}, -1: 0, "1": 0}, "l": [torch.zeros(1), {3: ""}]}
    into = copy.deepcopy(empty)
    dcp.load(into, storage_reader=distributed.StorageReader(tmp_path / "x"), planner=planner)
    assert same(into, state)
    into = {**empty, 4: torch.zeros(2), 2: {"x": 0}}
    distributed.load(into, tmp_path / "x", planner=planner)
    assert same(into, {**state, 2: {"x": 3}, 4: torch.ones(2)})


@pytest.mark.parametrize("keys", [(1, "1"), ("1", 1), (Number.ONE,), (None,)])
def test_keys_that_would_be_lost(tmp_path: Path, keys: tuple[Any, ...]) -> None:
    """Keys that a load would not give back are refused, and nothing is written."""
    with pytest.raises(ValueError, match="key"):
        distributed.save({"it": {key: {str(number): 1} for number, key in enumerate(keys)}}, tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("keys", [("0",), (2**63,), 5, (0,) * 1000])
def test_damaged_integer_keys(tmp_path: Path, keys: Any) -> None:
    """Positions of integer keys that cannot be such are damage."""
    distributed.save({"a": {3: 1}}, tmp_path)
    found = manifest.read(ShardedFolder(None, str(tmp_path), "x"))
    (item,) = found.storage_data.values()
    item.integer_keys = keys
    (tmp_path / MANIFEST).write_bytes(pickle.dumps(found))
    with pytest.raises(InvalidCheckpointError, match="damaged"):
        distributed.whole(tmp_path)
