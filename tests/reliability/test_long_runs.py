"""Operations that are repeated thousands of times leak nothing: no memory, thread, connection, task or instance."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields

import fsspec
import pytest
import torch
from checkpoints import MIB

import fsspec_csx as cstorch
from fsspec_csx.s3.filesystem import CSXFileSystem
from fsspec_csx.testing import LocalS3

# Part of what an instance of the filesystem stands for.
CHANGING = "AWS_SDK_UA_APP_ID"
DATA = bytearray(6 * MIB)
STATE = {"model": {"w": torch.arange(1000.0), "b": torch.ones(3)}, "step": 1}


@dataclass
class Held:
    """What this process holds.

    Attributes:
        threads: of the system.
        descriptors: open files and connections.
        tasks: of the event loop.
        instances: of the filesystem, in fsspec's cache.
        ours: objects of this package.
        objects: all that the garbage collector knows of.
        memory: resident, in bytes.
    """

    threads: int
    descriptors: int
    tasks: int
    instances: int
    ours: int
    objects: int
    memory: int


def drop_cancelled_timers() -> None:
    """Have asyncio forget cancelled timers, up to a hundred of which keep the contexts of requests that are over."""
    loop, ended = fsspec.asyn.get_loop(), threading.Event()

    def cancel() -> None:
        for _ in range(200):
            loop.call_later(3600, print).cancel()
        loop.call_later(0.05, ended.set)

    loop.call_soon_threadsafe(cancel)
    ended.wait()


def held() -> Held:
    """What this process holds now, when its garbage is collected."""
    drop_cancelled_timers()
    for _ in range(3):
        gc.collect()
    known = gc.get_objects()
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return Held(
        threads=len(os.listdir("/proc/self/task")),
        descriptors=len(os.listdir("/proc/self/fd")),
        tasks=len(asyncio.all_tasks(fsspec.asyn.get_loop())),
        instances=len(CSXFileSystem._cache),
        ours=sum(str(type(each).__module__).startswith("fsspec_csx.") for each in known),
        objects=len(known),
        memory=pages * os.sysconf("SC_PAGE_SIZE"),
    )


# -- what is done again and again --------------------------------------------------------------------------------------


def save_and_load(folder: str, number: int) -> None:
    """A checkpoint is saved and loaded."""
    cstorch.save(STATE, f"s3://{folder}/x.mdl")
    assert cstorch.load(f"s3://{folder}/x.mdl")["step"] == 1


def new_paths(folder: str, number: int) -> None:
    """Each checkpoint has a name of its own, and the former one is deleted."""
    cstorch.save(STATE, f"s3://{folder}/checkpoint_{number}.mdl")
    if number:
        fsspec.filesystem("s3").rm(f"{folder}/checkpoint_{number - 1}.mdl")


def open_and_copy(folder: str, number: int) -> None:
    """A file is written, read in several ways, copied and listed."""
    with fsspec.open(f"s3://{folder}/x", "wb") as file:
        file.write(b"data" * 100)
    with fsspec.open(f"s3://{folder}/x", "rt") as file:
        assert file.readline() == "data" * 100
    fs = fsspec.filesystem("s3")
    fs.cp_file(f"{folder}/x", f"{folder}/y")
    assert fs.cat_file(f"{folder}/y", start=0, end=4) == b"data"
    assert len(fs.ls(folder, refresh=True)) == 2


def parts(folder: str, number: int) -> None:
    """A file of two parts is written and read, and another is given up midway."""
    for given_up in (False, True):
        with suppress(ZeroDivisionError), fsspec.open(f"s3://{folder}/x", "wb", default_block_size=5 * MIB) as file:
            file.write(DATA)
            1 / (not given_up)
    assert fsspec.filesystem("s3").cat_file(f"{folder}/x") == DATA


def async_saves(folder: str, number: int) -> None:
    """A checkpoint is saved in the background."""
    cstorch.async_save(STATE, f"s3://{folder}/x.mdl").result()


def failures(folder: str, number: int) -> None:
    """What is loaded is missing, is forbidden, or is no checkpoint."""
    with pytest.raises(FileNotFoundError):
        cstorch.load(f"s3://{folder}/missing.mdl")
    with pytest.raises(PermissionError):
        cstorch.load(f"s3://{folder}/x.mdl", storage_options={"key": "reader", "secret": "wrong"})
    fsspec.filesystem("s3").pipe_file(f"{folder}/x.mdl", b"no checkpoint")
    with pytest.raises(ValueError, match="checkpoint"):
        cstorch.load(f"s3://{folder}/x.mdl")


def changing_credentials(folder: str, number: int) -> None:
    """Each round has another environment, as where short-lived credentials are renewed by hand."""
    os.environ[CHANGING] = f"run-{number}"
    fsspec.filesystem("s3").pipe_file(f"{folder}/x", b"data")


def changing_threads(folder: str, number: int) -> None:
    """Each round has a thread of its own."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            save_and_load(folder, number)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


# How often each is done, for a few seconds and for many minutes. All that parts bring stays on the server's disk.
WAYS: dict[Callable[[str, int], None], tuple[int, int]] = {
    save_and_load: (40, 10_000),
    new_paths: (40, 10_000),
    open_and_copy: (30, 10_000),
    parts: (16, 500),
    async_saves: (40, 10_000),
    failures: (30, 10_000),
    changing_credentials: (30, 10_000),
    changing_threads: (30, 10_000),
}
LONG = pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(7200)], id="long")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("length", [pytest.param(0, id="short"), LONG])
def test_nothing_grows(
    environment: LocalS3,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[str, int], None],
    length: int,
) -> None:
    """A process that has done it some times holds after many more what it held before."""
    monkeypatch.setenv(CHANGING, "")
    last = WAYS[way][length]
    warm = min(last // 2, 500)
    for number in range(warm):
        way(bucket, number)
    before = held()
    for number in range(warm, last):
        way(bucket, number)
    after = held()
    grown = {each.name: getattr(after, each.name) - getattr(before, each.name) for each in fields(Held)}
    print(f"{before}, grown by {grown}")
    assert max(grown[name] for name in ("threads", "descriptors", "tasks", "instances", "ours")) <= 8, grown
    assert grown["objects"] < last - warm + 300, grown
    assert grown["memory"] < 8 * MIB, grown
