"""Processes that end, fork, or lose threads and event loops during an operation; and their memory."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.callbacks import Callback
from victims import state

from fsspec_csx import async_save, load, save
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS

MIB = 2**20
LARGE = 200


class Begun(Callback):  # type: ignore[misc]
    """Says that bytes were written.

    Attributes:
        event: is set then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.event = threading.Event()

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self.event.set()


def fork_in_a_save(path: str) -> None:
    """Fork while a thread saves; the child saves, too, and ends as processes do."""
    begun = Begun()
    saving = threading.Thread(target=lambda: save(state(2), path, callback=begun))
    saving.start()
    begun.event.wait()  # a module that is just being imported when a process forks cannot be imported in the child
    assert saving.is_alive()
    child = os.fork()
    if not child:
        save(state(3, 1000), f"{path}.child")
        assert load(f"{path}.child")["step"] == 3
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    saving.join()
    assert load(path)["step"] == 2


def thread_that_dies(path: str) -> None:
    """A thread ends in the midst of a write."""

    def write() -> None:
        file = fsspec.open(path, "wb").open()
        file.write(bytes(20 * MIB))
        raise SystemExit

    dying = threading.Thread(target=write)
    dying.start()
    dying.join()


def end_beside_a_daemon(path: str) -> None:
    """The process ends while a thread saves for which it does not wait."""
    begun = Begun()
    threading.Thread(target=lambda: save(state(2), path, callback=begun), daemon=True).start()
    begun.event.wait()
    sys.exit(7)


def end_in_async_save(path: str) -> None:
    """The process ends, with a failure of its own, while a checkpoint is saved in the background."""
    async_save(state(2), path)
    sys.exit(7)


def end_with_open_file(path: str) -> None:
    """The process ends with a file open, of which parts were sent."""
    global _file
    _file = fsspec.open(path, "wb").open()
    _file.write(bytes(20 * MIB))
    sys.exit(7)


_file: Any = None


def loop_closed_early(path: str) -> None:
    """An event loop ends in the midst of a write."""

    async def begin() -> None:
        fs, inner = fsspec.core.url_to_fs(path, asynchronous=True)
        await fs.set_session()
        writing = asyncio.ensure_future(fs._pipe_file(inner, bytes(20 * MIB)))
        await asyncio.sleep(0.4)
        assert not writing.done()

    asyncio.run(begin())


def memory(path: str) -> None:
    """Print the memory, in MiB, that it takes to save 200 MiB, to load them, and to write them from other memory."""
    save({"x": torch.ones(MIB)}, path)
    with fsspec.filesystem("s3").transfer.slots.fixed(MIN_REQUESTS):  # a busy machine answers as late as a far store
        print(json.dumps(_memory(path)))


def _memory(path: str) -> dict[str, float]:
    load(path)
    with fsspec.open(path, "wb") as file:
        file.write(bytes(9 * MIB))
    found = {}
    obj = {f"layer.{number}": torch.full((5 * MIB,), number, dtype=torch.int32) for number in range(LARGE // 20)}
    with _Peak() as saving:
        save(obj, path)
    found["save"] = saving.extra
    del obj
    with _Peak() as loading:
        loaded = load(path)
    found["load"] = loading.extra - LARGE
    assert loaded["layer.3"][-1] == 3
    del loaded
    with _Peak() as writing, fsspec.open(path, "wb") as file:
        for number in range(LARGE):
            file.write(bytes([number]) * MIB)
    found["write"] = writing.extra
    return found


class _Peak:
    """The most memory of this process within a block, above that at its start.

    Attributes:
        extra: in MiB.
    """

    extra = 0.0

    def __enter__(self) -> _Peak:
        Path("/proc/self/clear_refs").write_text("5")  # https://docs.kernel.org/filesystems/proc.html
        self._before = self._reported("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.extra = self._reported("VmHWM") - self._before

    @staticmethod
    def _reported(name: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / 1024
        raise LookupError(name)
