"""Copies tensors at the speed of memory, with several threads, into reusable buffers.

The first use of new memory takes longer than a copy. A buffer is reused only when nothing refers to its memory, so
that no upload reads what a later save writes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias, TypeVar

import torch

from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.memory import is_freed
from fsspec_csx.tensors.staging import aligned, batches

_PIECE = 16 * 2**20
_THREADS = 8
_KEPT_FROM = 2**20  # bytes; smaller snapshots use no buffer

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


_Key = TypeVar("_Key")
_Piece: TypeAlias = "tuple[torch.UntypedStorage, torch.UntypedStorage, int, int]"

_buffers = Buffers()


def _reset() -> None:
    """Drop the parent's buffers in a forked child, so that the parent can write to their pages without a copy."""
    global _buffers
    _buffers = Buffers()


os.register_at_fork(after_in_child=_reset)


def release() -> None:
    """Give the memory that is kept for the next snapshot back to the system."""
    _buffers.release()


def copy_storages(storages: Sequence[torch.UntypedStorage]) -> list[torch.UntypedStorage]:
    """Copy storages to the CPU; the copies are complete when this returns.

    Copies of CPU storages share a buffer, which is reused when nothing refers to any of them. Copies of CUDA storages
    are in pinned memory, which torch keeps for the next snapshot.
    """
    here = [each for each in storages if each.device.type == "cpu"]
    targets = _targets([each.nbytes() for each in here])
    streams: dict[torch.device, torch.cuda.Stream] = {}
    left, copies = iter(targets), []
    for each in storages:
        if each.device.type == "cuda":
            copies.append(_start_copy(each, streams))
        else:
            copies.append(next(left) if each.device.type == "cpu" else each.cpu())  # type: ignore[no-untyped-call]
    _copy_in_threads([*zip(targets, here, strict=True)])
    for stream in streams.values():
        stream.synchronize()
    return copies


def copies_of(named: Mapping[_Key, torch.Tensor]) -> dict[_Key, torch.Tensor]:
    """Copy tensors to the CPU; the copies are complete when this returns, and share memory like the originals.

    Tensors without memory to copy, such as meta tensors, are returned themselves.
    """
    tensors = [*named.values()]
    used: dict[int, int] = {}
    storages: dict[int, torch.UntypedStorage] = {}
    places = [_place(each) for each in tensors]
    for tensor, place in zip(tensors, places, strict=True):
        if place:
            used[place] = used.get(place, 0) + tensor.nbytes
            storages[place] = tensor.untyped_storage()
    # Small parts of a large storage are copied without the rest.
    storages = {place: each for place, each in storages.items() if 2 * used[place] >= each.nbytes()}
    copies = dict(zip(storages, copy_storages([*storages.values()]), strict=True))
    return {
        name: _view(tensor, copies[place]) if place in copies else _copy_alone(tensor)
        for (name, tensor), place in zip(named.items(), places, strict=True)
    }


def _place(tensor: torch.Tensor) -> int:
    """Return the address of the storage that a tensor views; 0 if it is more than a view, or has no memory."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg():
        return 0
    if tensor.device.type == "meta" or not tensor.nbytes or is_freed(tensor):
        return 0
    return torch_compat.address(tensor.untyped_storage())


def _view(tensor: torch.Tensor, storage: torch.UntypedStorage) -> torch.Tensor:
    view = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return view.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


def _copy_alone(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "meta" or is_freed(tensor):
        return tensor
    return tensor.detach().to("cpu", copy=True)


# -- CPU ---------------------------------------------------------------------------------------------------------------


def _targets(sizes: Sequence[int]) -> list[torch.UntypedStorage]:
    """Return storages of the given sizes, consecutive in a buffer."""
    total = sum(map(aligned, sizes))
    memory = _buffers.lease(total) if total >= _KEPT_FROM else None
    targets, start = [], 0
    for size in sizes:
        if memory is None or not size:
            target = torch.empty(size, dtype=torch.uint8, device="cpu")
        else:
            target = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)
        targets.append(target.untyped_storage())
        start += aligned(size)
    return targets


def _copy_in_threads(pairs: Sequence[tuple[torch.UntypedStorage, torch.UntypedStorage]]) -> None:
    """Copy from the second of each pair to the first."""
    jobs = [*batches(_pieces(pairs), lambda piece: piece[3], _PIECE)]
    threads = min(_THREADS, os.cpu_count() or 1, len(jobs))
    if threads <= 1:
        for job in jobs:
            _copy(job)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="fsspec_csx snapshot") as executor:
        for _ in executor.map(_copy, jobs):
            pass


def _pieces(pairs: Sequence[tuple[torch.UntypedStorage, torch.UntypedStorage]]) -> Iterator[_Piece]:
    for target, source in pairs:
        size = source.nbytes()
        for start in range(0, size, _PIECE):
            yield target, source, start, min(_PIECE, size - start)


def _copy(pieces: Sequence[_Piece]) -> None:
    for target, source, start, size in pieces:
        # Unlike torch's copy, it starts no threads and releases the GIL.
        ctypes.memmove(target.data_ptr() + start, source.data_ptr() + start, size)


# -- CUDA --------------------------------------------------------------------------------------------------------------


def _start_copy(storage: torch.UntypedStorage, streams: dict[torch.device, torch.cuda.Stream]) -> torch.UntypedStorage:
    """Copy to pinned memory; the copy is complete when the device's stream is synchronized."""
    device = storage.device
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        streams[device].wait_stream(torch.cuda.current_stream(device))  # wait for the work that fills the tensors
    copy = torch.empty(storage.nbytes(), dtype=torch.uint8, device="cpu", pin_memory=True).untyped_storage()
    with torch.cuda.stream(streams[device]):
        copy.copy_(storage, non_blocking=True)
    return copy
