"""Buffers: the kernel clears new memory, which takes longer than filling it, so they are used again.

New ones are allocated in one call, as page by page takes longer still.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress

# MADV_POPULATE_WRITE: https://man7.org/linux/man-pages/man2/madvise.2.html
_POPULATE_WRITE = 23
_LEAST = 64 * 1024
_WORDS = 16  # at least the size of a Py_buffer
_READ, _WRITE = 0, 1  # PyBUF_SIMPLE and PyBUF_WRITABLE

_madvise = _mincore = None
if sys.platform == "linux":
    _madvise, _mincore = ctypes.CDLL(None).madvise, ctypes.CDLL(None).mincore
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


class BufferPool:
    """Free buffers, shared by open files; it is empty when no file uses it. Thread-safe."""

    def __init__(self) -> None:
        self.free: list[memoryview] = []
        self._users: weakref.WeakSet[object] = weakref.WeakSet()
        self._lock = threading.RLock()  # a signal handler may write to a file too

    def take(self, size: int, user: object) -> memoryview | None:
        """Return a free buffer of ``size`` bytes; drop those of other sizes before it, whose memory counts too."""
        with self._lock, suppress(IndexError):
            self._users.add(user)
            # Only by pop: a signal handler may take one between any two steps.
            while len(memory := self.free.pop()) != size:
                pass
            return memory
        return None

    def give_back(self, buffers: Sequence[memoryview], most: int) -> None:
        """Keep buffers that nothing uses any more, unless ``most`` bytes are free already."""
        with self._lock:
            if self._users and sum(map(len, self.free)) < most:
                self.free.extend(buffers)

    def leave(self, user: object) -> None:
        """Note that a file needs no buffers any more."""
        with self._lock:
            self._users.discard(user)
            if not self._users:
                self.free.clear()


def new_buffer(size: int) -> memoryview:
    """Return a buffer whose pages are allocated as it is filled."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a forked process must not share the memory
    return memoryview(mmap.mmap(-1, size, flags=private))


def populate(memory: memoryview) -> None:
    """Let the kernel allocate the pages of a writable buffer in one call, if it can; other threads run meanwhile."""
    if _madvise is None or _mincore is None or len(memory) < _LEAST:
        return
    first = _address(memory)
    start, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, (first + len(memory)) // mmap.PAGESIZE * mmap.PAGESIZE
    last = ctypes.create_string_buffer(1)
    if _mincore(end - mmap.PAGESIZE, mmap.PAGESIZE, last) == 0 and last.raw[0] & 1:
        return  # the last page is there, as in a buffer that is used again: walking through all pages takes long
    _madvise(start, end - start, _POPULATE_WRITE)  # older kernels refuse it; the pages are then allocated as usual


def copy(target: memoryview, source: memoryview) -> None:
    """Copy a buffer to another of equal length; if they are large, other threads run meanwhile."""
    if len(target) < _LEAST or len(target) != len(source):
        target[:] = source  # raises an error if the lengths differ
    else:
        ctypes.memmove(_address(target), _address(source, _READ), len(target))


def _address(memory: memoryview, access: int = _WRITE) -> int:
    # The structure Py_buffer begins with the address: https://docs.python.org/3/c-api/buffer.html
    found = (ctypes.c_void_p * _WORDS)()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(memory), found, access)
    address = found[0] or 0
    ctypes.pythonapi.PyBuffer_Release(found)
    return address
