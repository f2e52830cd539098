"""load(into=…) of folders, in which keys are strings and torch's own writer leaves empty dicts out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from fsspec_csx import distributed, load, save
from fsspec_csx.testing.example_values import plain, same


def trained(value: float) -> dict[str, Any]:
    """The states of a model and of its optimizers, whose keys are numbers."""
    model = torch.nn.Linear(3, 2)
    adam, sgd = torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), lr=value)
    model(torch.full((1, 3), value)).sum().backward()
    adam.step()
    states = {"adam": adam.state_dict(), "sgd": sgd.state_dict(), "counts": {1: {2: value}}}
    return {"model": plain(dict(model.state_dict())), **states}


def by_torch(state: Any, path: str) -> None:
    """Saves as dcp.save does, which drops empty dicts."""
    dcp.save(state, storage_writer=distributed.StorageWriter(path))


@pytest.mark.parametrize("write", [distributed.save, by_torch])
def test_optimizer_state(root: str, write: Any) -> None:
    """States of optimizers fit, by their numbers, and what is filled is what was saved."""
    saved = trained(2.0)
    write(saved, f"{root}/x")
    into = trained(3.0)
    tensor = into["adam"]["state"][0]["exp_avg"]
    assert load(f"{root}/x", into=into) is into
    assert same(into, saved)
    assert into["adam"]["state"][0]["exp_avg"] is tensor
    into = trained(3.0)
    load(f"{root}/x", into=into, keys=["adam.state.0"])
    assert same(into["adam"]["state"][0], saved["adam"]["state"][0])


@pytest.mark.usefixtures("environment")
def test_cerebras(bucket: str) -> None:
    """A Cerebras checkpoint keeps numbers as keys, and fits likewise."""
    saved = trained(2.0)
    saved["adam"]["param_groups"] = [{"lr": 0.5}]
    saved["sgd"] = {"state": {}}
    save(saved, f"s3://{bucket}/x", format="cerebras")
    into = {**trained(3.0), "sgd": {"state": {}}}
    into["adam"]["param_groups"] = [{"lr": 0.1}]
    load(f"s3://{bucket}/x", into=into)
    assert same(into, saved)
