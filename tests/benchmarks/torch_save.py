"""The processor time of torch.save itself, with a file that discards the bytes, and with a buffer that is reused.

    python tests/benchmarks/torch_save.py

A file that must own the bytes when ``write`` returns cannot be faster than the second.
"""

from __future__ import annotations

import time
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


def seconds(state: Any, file: Any) -> float:
    """The least processor time of some saves."""
    found = []
    for _ in range(_RUNS):
        began = time.process_time()
        torch.save(state, file)
        found.append(time.process_time() - began)
    return min(found)


def _print(case: Case) -> None:
    state, gigabytes = case.state(), case.nbytes / 1e9
    for file in (Dropping(), Copying()):
        took = seconds(state, file)
        print(
            f"{case}, {type(file).__name__}: {took:.3f} s, {took / gigabytes:.2f} s/GB, {file.writes // _RUNS} writes"
        )


def main() -> None:
    """Measure the large and the small tensors."""
    for case in CASES:
        if case.name in ("large", "small"):
            _print(case)


if __name__ == "__main__":
    main()
