"""The processor time of torch.save itself, with a file that discards the bytes, and with a buffer that is reused.

    python tests/benchmarks/torch_save.py

A file that must own the bytes when ``write`` returns cannot be faster than the second.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import torch
from cases import Case
from sections import CASES

_RUNS = 5
_BUFFER = 40 * 2**20


class Dropping:
    """A file that drops what is written; ``writes`` is how many times."""

    def __init__(self) -> None:
        self.writes = 0

    def write(self, data: Any) -> int:
        """Count a write."""
        self.writes += 1
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing."""


class Copying(Dropping):
    """A file that copies what is written into a buffer, over and over."""

    def __init__(self) -> None:
        super().__init__()
        self._buffer = memoryview(bytearray(b"\1") * _BUFFER)
        self._at = 0

    def write(self, data: Any) -> int:
        """Copy the data."""
        rest = memoryview(data)
        while rest:
            end = min(self._at + len(rest), _BUFFER)
            taken, rest = rest[: end - self._at], rest[end - self._at :]
            self._buffer[self._at : end] = taken
            self._at = end % _BUFFER
        return super().write(data)


def seconds(call: Callable[[], object]) -> float:
    """The least processor time of some calls."""
    found = []
    for _ in range(_RUNS):
        began = time.process_time()
        call()
        found.append(time.process_time() - began)
    return min(found)


def _print(case: Case) -> None:
    state, gigabytes, written = case.state(), case.nbytes / 1e9, io.BytesIO()
    torch.save(state, written)
    files: Any = Dropping(), Copying()
    dropping, copying = files
    calls: dict[str, Callable[[], object]] = {
        "torch.save into nothing": lambda: torch.save(state, dropping),
        "torch.save into a buffer": lambda: torch.save(state, copying),
        "torch.load from memory": lambda: loaded(written),
    }
    for name, call in calls.items():
        took = seconds(call)
        print(f"{case}, {name}: {took:.3f} s, {took / gigabytes:.2f} s/GB")
    print(f"{case}, calls of write: {dropping.writes // _RUNS}")


def loaded(file: io.BytesIO) -> Any:
    """What torch.load reads from the beginning of a file."""
    file.seek(0)
    return torch.load(file, weights_only=True)


def main() -> None:
    """Measure the large and the small tensors."""
    for case in CASES:
        if case.name in ("large", "small"):
            _print(case)


if __name__ == "__main__":
    main()
