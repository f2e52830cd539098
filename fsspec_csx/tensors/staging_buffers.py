"""Reusable CPU buffers for snapshots: the first use of new memory takes longer than a copy.

A buffer is reused only when nothing refers to its memory, so that no upload reads what a later save writes.
"""

from __future__ import annotations

import mmap
import threading
import time
import weakref
from collections import deque
from typing import NamedTuple

_IDLE_SECONDS = 30 * 60.0
_KEPT = 2
_ROUNDED_TO = 2 * 2**20


class _Free(NamedTuple):
    """Unused memory, and the monotonic time since when it is unused."""

    memory: mmap.mmap
    since: float


def _allocated(size: int) -> mmap.mmap:
    # Private, or forked children would share the memory. Small pages, because finding huge ones can take seconds.
    try:
        return mmap.mmap(-1, -(-size // _ROUNDED_TO) * _ROUNDED_TO, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        msg = f"There is no memory for a copy of {size} bytes of tensors. Use save, which needs none."
        raise MemoryError(msg) from error


class Buffers:
    """Free buffers: at most two, each for at most half an hour after its last use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: deque[_Free] = deque()  # finalizers append to it, and must not wait for the lock
        self._leased: list[weakref.ref[memoryview]] = []
        self._timer: threading.Timer | None = None

    def lease(self, size: int) -> memoryview:
        """Return at least ``size`` bytes of memory; they become free when nothing refers to the result."""
        with self._lock:
            buffer = self._take(size) or _allocated(size)
            memory = memoryview(buffer)  # it lives as long as anything made from it
            weakref.finalize(memory, self._give_back, buffer).atexit = False
            self._leased = [each for each in self._leased if each() is not None] + [weakref.ref(memory)]
            if self._timer is None:
                self._watch()
        return memory

    def release(self) -> None:
        """Give the memory of the free buffers back to the system."""
        self._free.clear()

    def _take(self, size: int) -> mmap.mmap | None:
        """Return the smallest fitting free buffer. If there is none, drop all, to keep memory for one save."""
        free = sorted((self._free.popleft() for _ in range(len(self._free))), key=lambda each: len(each.memory))
        for each in free:
            if size <= len(each.memory) <= 2 * size + _ROUNDED_TO:
                self._free.extend(other for other in free if other is not each)
                return each.memory
        return None

    def _give_back(self, buffer: mmap.mmap) -> None:
        if len(self._free) < _KEPT:
            self._free.append(_Free(buffer, time.monotonic()))

    def _watch(self) -> None:
        self._timer = threading.Timer(_IDLE_SECONDS / 4, self._release_idle)
        self._timer.name = "fsspec_csx staging buffers"
        self._timer.daemon = True
        self._timer.start()

    def _release_idle(self) -> None:
        with self._lock:
            limit = time.monotonic() - _IDLE_SECONDS
            for _ in range(len(self._free)):
                each = self._free.popleft()
                if each.since > limit:
                    self._free.append(each)
            self._timer = None
            if self._free or any(each() is not None for each in self._leased):
                self._watch()
