"""The files with which the cost of torch.save and torch.load is measured have all bytes."""

from __future__ import annotations

import io
from typing import Any

import torch
import torch_alone


def test_files_take_all_bytes() -> None:
    """The copying file has the bytes that any file gets, and counts the writes."""
    state, expected = {"a": torch.arange(1000.0)}, io.BytesIO()
    file: Any = torch_alone.Copying()
    torch.save(state, expected)
    assert torch_alone.seconds(lambda: torch.save(state, file)) > 0
    assert file.writes > torch_alone._RUNS
    assert bytes(file._buffer[: len(expected.getvalue())]) == expected.getvalue()
    assert torch.equal(torch_alone.loaded(expected)["a"], state["a"])
