"""Memory that is populated and copied."""

from __future__ import annotations

import itertools
import os
import sys
from typing import Any

import pytest

from fsspec_csx.s3.transport import memory

_SIZE = 300_000
_DATA = os.urandom(_SIZE)


@pytest.mark.parametrize("kernel", ["this", "older"])
def test_populate_changes_nothing(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer at any address keeps its bytes, and so do those beside it, also where the kernel has no such call."""
    if kernel == "older":
        monkeypatch.setattr(memory, "_POPULATE_WRITE", 9999)
    whole = bytearray(_DATA)
    for start, length in itertools.product((0, 1, 4095, 4096, 70_001), (0, 1, 65_536, 200_001)):
        memory.populate(memoryview(whole)[start : start + length])
        assert whole == _DATA


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux has the call.")
def test_populated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory is populated; a buffer that is used again is not gone through once more."""
    calls: list[tuple[int, int]] = []
    madvise: Any = memory._madvise

    def counted(start: int, length: int, advice: int) -> int:
        calls.append((start, length))
        done: int = madvise(start, length, advice)
        return done

    monkeypatch.setattr(memory, "_madvise", counted)
    buffer = memory.new_buffer(2**20)
    memory.populate(buffer[: 2**19])
    buffer[: 2**19] = bytes(2**19)
    memory.populate(buffer[: 2**19])
    assert [length for _, length in calls] == [2**19]
    memory.populate(buffer)
    assert len(calls) == 2


@pytest.mark.parametrize("make", [bytes, bytearray])
def test_copy(make: type) -> None:
    """Exactly the bytes of the source come to the target, from memory that may be written to or not."""
    buffer = memory.new_buffer(_SIZE)
    assert bytes(buffer) == bytes(_SIZE)
    for length in (0, 1, 100_000):
        memory.copy(buffer[5 : 5 + length], memoryview(make(_DATA))[7 : 7 + length])
        assert bytes(buffer) == bytes(5) + _DATA[7 : 7 + length] + bytes(_SIZE - 5 - length)


def test_copy_is_checked() -> None:
    """Memory that is too short, read-only or has gaps is an error, whatever its size, and nothing is copied."""
    for length in (1000, 100_000):
        target, constant, data = memory.new_buffer(length), bytes(length), memoryview(_DATA)[:length]
        for wrong, source in ((target, data[1:]), (target[1:], data), (memoryview(constant), data)):
            with pytest.raises((ValueError, TypeError, BufferError)):
                memory.copy(wrong, source)
        assert bytes(target) == constant == bytes(length)
    with pytest.raises(BufferError):
        memory.copy(memory.new_buffer(100_000), memoryview(_DATA)[:200_000:2])


def test_buffer_is_private() -> None:
    """What a forked process writes to its copy does not come to its parent."""
    buffer = memory.new_buffer(4096)
    if not (pid := os.fork()):
        buffer[0] = 1
        os._exit(0)
    os.waitpid(pid, 0)
    assert buffer[0] == 0


def test_no_buffer_is_taken_twice() -> None:
    """A signal handler that takes a buffer, while another is being taken, gets one of its own, or none."""
    pool, taken = memory.BufferPool(), list[Any]()

    class Interrupted:
        """A buffer, with a signal while its length is looked at."""

        signals = 1

        def __len__(self) -> int:
            if taken and self.signals:
                self.signals = 0
                taken.append(pool.take(4096, pool))
            return 4096

    for count in range(4):
        taken.clear()
        assert pool.take(4096, pool) is None
        pool.give_back([Interrupted() for _ in range(count)], 2**20)
        taken.append("the signals come")
        while (buffer := pool.take(4096, pool)) is not None:
            taken.append(buffer)
        found = [each for each in taken[1:] if each is not None]
        assert len(found) == len({*map(id, found)}) == count
