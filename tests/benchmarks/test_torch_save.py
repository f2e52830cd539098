"""The files with which the cost of torch.save is measured accept all bytes."""

from __future__ import annotations

import io

import torch
import torch_save


def test_files_take_all_bytes() -> None:
    """The copying file has the bytes that any file gets, and counts the writes."""
    state, expected, file = {"a": torch.arange(1000.0)}, io.BytesIO(), torch_save.Copying()
    torch.save(state, expected)
    assert torch_save.seconds(state, file) > 0
    assert file.writes > torch_save._RUNS
    assert bytes(file._buffer[: len(expected.getvalue())]) == expected.getvalue()
