"""Programs that end during an operation: ``exits.py NAME PATH``."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import fsspec
from endings import MIB, Begun
from victims import state

from fsspec_csx import async_save, load, save

_kept: list[Any] = []


def _begun(path: str) -> Any:
    """A file of which parts were sent."""
    file = fsspec.open(path, "wb").open()
    file.write(bytes(20 * MIB))
    return file


def _in_threads(function: Callable[[], object], *, daemon: bool) -> None:
    for _ in range(3):
        threading.Thread(target=function, daemon=daemon).start()


def open_files(path: str) -> None:
    """The process ends with files open, which are never closed."""
    _kept.extend([_begun(path), _begun(path)])
    sys.exit(7)


def open_file_and_error(path: str) -> None:
    """An uncaught exception ends it with a file open."""
    file = _begun(path)
    raise KeyError(file)


def threads_too_late(path: str) -> None:
    """Threads that outlive the main one get an error that requests cannot be made any more."""

    def one() -> None:
        threading.main_thread().join()
        for function in (lambda: load(path), lambda: save(state(2), path)):
            try:
                function()
            except RuntimeError as error:
                print(error)

    _in_threads(one, daemon=False)


def threads_too_late_after_a_load(path: str) -> None:
    """Also where connections are there already."""
    load(path)
    threads_too_late(path)


def daemons_that_load(path: str) -> None:
    """The process does not wait for threads that load."""
    began = threading.Event()

    def one() -> None:
        while True:
            began.set()
            load(path)

    _in_threads(one, daemon=True)
    began.wait()
    sys.exit(7)


def daemons_that_save(path: str) -> None:
    """Nor for threads that save."""
    begun = Begun()
    _in_threads(lambda: save(state(2), path, callback=begun), daemon=True)
    begun.event.wait()
    sys.exit(7)


def terminated(path: str) -> None:
    """SIGTERM ends it while it saves, in the background, too, and has a file open."""
    begun = Begun()
    file = _begun(path)
    async_save(state(2), path)
    threading.Thread(target=lambda: begun.event.wait() and os.kill(os.getpid(), signal.SIGTERM), daemon=True).start()
    save(state(2), path, callback=begun)
    file.discard()


def gone_at_once(path: str) -> None:
    """It ends without any of what is done at an exit."""
    begun = Begun()
    file = _begun(path)
    async_save(state(2), path, callback=begun)
    begun.event.wait()
    assert not file.closed
    os._exit(7)


def child_in_async_save(path: str) -> None:
    """A child ends while it saves in the background: it waits for that."""
    _child(lambda: async_save(state(2), path))


def child_with_open_file(path: str) -> None:
    """A child ends with a file open, beside its parent's own."""
    file = _begun(path)
    _child(lambda: _kept.append(_begun(path)))
    file.discard()


def child_that_is_terminated(path: str) -> None:
    """A child is ended in the midst of a save, and its parent saves there afterwards."""
    child = multiprocessing.get_context("fork").Process(target=_save_and_tell, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGTERM
    save(state(2), path)


def _save_and_tell(path: str) -> None:
    begun = Begun()
    threading.Thread(target=lambda: begun.event.wait() and os.kill(os.getpid(), signal.SIGTERM), daemon=True).start()
    save(state(3), path, callback=begun)


def _child(function: Callable[[], object]) -> None:
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join()
    assert child.exitcode == 0


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
