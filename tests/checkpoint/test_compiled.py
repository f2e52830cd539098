"""Calls of save and load in a compiled function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fsspec_csx import async_save, load, save


@pytest.mark.slow  # importing torch's compiler takes seconds
@pytest.mark.parametrize("saving", [save, async_save])
def test_save_in_a_compiled_function(tmp_path: Path, saving: Callable[..., Any]) -> None:
    """torch.compile does not trace a save: the function continues with the values that it computed."""

    def step(x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        y = x + 1
        future = saving({"y": y, "parameter": torch.nn.Parameter(y)}, tmp_path / "x.pt")
        return y * 2, future

    for start in (1.0, 2.0):
        torch.compiler.reset()
        result, future = torch.compile(step, backend="eager")(torch.full((3,), start))
        if future is not None:
            future.result()
        assert torch.equal(result, torch.full((3,), 2 * (start + 1)))
        assert torch.equal(load(tmp_path / "x.pt")["y"], torch.full((3,), start + 1))
