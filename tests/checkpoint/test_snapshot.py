"""Snapshots: what is copied, and when the memory is reused."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import MIB

import fsspec_csx
from fsspec_csx.tensors import snapshot
from fsspec_csx.tensors.source import memory_of

SECONDS = 30


@pytest.fixture(autouse=True)
def no_buffers() -> Iterator[None]:
    """No buffer is left of another test, or for one."""
    fsspec_csx.release_buffers()
    yield
    fsspec_csx.release_buffers()


def free() -> list[int]:
    """The sizes of the free buffers, in MiB."""
    return sorted(len(each.memory) // MIB for each in snapshot._buffers._free)


def storages(*sizes: int) -> list[torch.UntypedStorage]:
    """Storages of so many bytes, each of one number."""
    return [torch.full((size,), number + 1, dtype=torch.uint8).untyped_storage() for number, size in enumerate(sizes)]


def bytes_of(storage: torch.UntypedStorage) -> bytes:
    """What a storage holds."""
    return bytes(memory_of(storage))


def test_copies_of_storages() -> None:
    """Copies of all sizes have the bytes of the call, on aligned memory, and empty ones are not each other."""
    originals = [*storages(0, 1, 3, 63, 64, 65, 5 * MIB + 1, 20 * MIB, 0), torch.empty(0).untyped_storage()]
    expected = [bytes_of(each) for each in originals]
    copies = snapshot.copy_storages(originals)
    for each in originals:
        each.fill_(0)
    assert [bytes_of(each) for each in copies] == expected
    assert all(each.data_ptr() % 64 == 0 for each in copies)
    assert len({each._cdata for each in copies}) == len(copies)


def test_copies_of_tensors() -> None:
    """Views share memory again, a small part of large memory is copied alone, and what has no memory stays."""
    base = torch.arange(100.0)
    large = torch.arange(1000.0)
    freed = torch.ones(5)
    freed.untyped_storage().resize_(0)
    turned = torch.randn(4, dtype=torch.complex64).conj()
    given = [
        base,
        base[::3],
        base[3:7].view(2, 2),
        large[5:7],
        torch.nn.Parameter(base),
        turned,
        freed,
        torch.empty(0, 2),
    ]
    given.append(torch.ones(3, device="meta"))
    copies = [*snapshot.copies_of(dict(enumerate(given))).values()]
    assert all(torch.equal(one, other) for one, other in zip(copies[:6], given, strict=False))
    copies[0][3] = 42
    assert (copies[1][1], copies[2][0, 0], copies[4][3], base[3]) == (42, 42, 42, 3)
    assert copies[3].untyped_storage().nbytes() == 8
    assert copies[6] is freed
    assert copies[8].device.type == "meta"
    assert not copies[4].requires_grad


def test_memory_is_used_again() -> None:
    """The next snapshot gets the same memory, when nothing refers to the first, and not before."""
    first = snapshot.copy_storages(storages(3 * MIB, MIB))
    place = first[0].data_ptr()
    view = memory_of(first[1])  # what an upload has
    del first
    second = snapshot.copy_storages(storages(3 * MIB, MIB))
    assert second[0].data_ptr() != place
    assert free() == []
    assert bytes(view) == b"\2" * MIB
    del view
    assert free() == [4]
    third = snapshot.copy_storages(storages(2 * MIB, 2 * MIB))
    assert third[0].data_ptr() == place
    assert bytes_of(second[1]) == b"\2" * MIB


def test_memory_is_bounded() -> None:
    """Two buffers are kept at most; a snapshot that none fits makes them go, and a small one takes no large one."""
    kept = [snapshot.copy_storages(storages(size * MIB)) for size in (4, 6, 8)]
    for each in kept:
        each.clear()
    assert free() == [4, 6]
    small = snapshot.copy_storages(storages(MIB // 2))
    assert free() == [4, 6]
    fitting = snapshot.copy_storages(storages(3 * MIB))
    assert free() == [6]
    larger = snapshot.copy_storages(storages(7 * MIB))
    assert free() == []
    del small, fitting, larger
    assert free() == [4, 8]
    fsspec_csx.release_buffers()
    assert free() == []


def test_idle_memory_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer that was unused for a while is freed by itself, though it was still in use at the first check."""
    monkeypatch.setattr(snapshot, "_IDLE_SECONDS", 0.04)
    buffers = snapshot.Buffers()
    memory = buffers.lease(MIB)
    time.sleep(0.1)
    del memory
    deadline = time.monotonic() + SECONDS
    while buffers._free or buffers._timer:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_memory() -> None:
    """Memory that is not there is an error that says what to do."""
    with pytest.raises(MemoryError, match="Use save"):
        snapshot._buffers.lease(2**60)


def test_threads_at_once() -> None:
    """Snapshots of several threads never share memory."""
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            (copy,) = snapshot.copy_storages([torch.full((2 * MIB,), number, dtype=torch.uint8).untyped_storage()])
            if bytes_of(copy) != bytes([number]) * (2 * MIB):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert wrong == []
    assert len(free()) <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_has_none() -> None:
    """A forked child lets go of free buffers, and keeps what it refers to."""
    held, first = snapshot.copy_storages(storages(3 * MIB)), snapshot.copy_storages(storages(2 * MIB))
    del first
    child = os.fork()
    if not child:
        os._exit(0 if free() == [] and bytes_of(held[0]) == b"\1" * (3 * MIB) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert free() == [2]


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "folder.safetensors.index.json"])
def test_saves_use_the_memory_again(tmp_path: Path, name: str) -> None:
    """Each format saves the values of its call, one save after the other on the same memory."""
    tensors = {key: torch.zeros(MIB // 2) for key in "ab"}
    for number in range(3):
        tensors["a"].fill_(number)
        saving = fsspec_csx.async_save(tensors, tmp_path / name)
        tensors["a"].fill_(9)
        saving.result(SECONDS)
        assert fsspec_csx.load(tmp_path / name)["a"].unique().tolist() == [number]
        del saving
        gc.collect()
        assert free() == [4]
