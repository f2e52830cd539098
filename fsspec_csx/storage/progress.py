"""How far a save or a load has got, told to an fsspec callback; by default to a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

from fsspec.callbacks import Callback, NoOpCallback, TqdmCallback

T = TypeVar("T")

_DELAY = 1.0
_STEP = 256 * 1024


class ProgressMeter:
    """Feeds a callback so that its value never passes its size, and is equal to it in the end.

    Args:
        callback: gets ``set_size`` with the total, and ``relative_update`` with what was added, all in bytes. Many
            small steps come as one.
        size: the total in bytes.
        estimated: whether the true total may differ; then the callback's size follows what really comes.
    """

    def __init__(self, callback: Callback, size: int, *, estimated: bool = False) -> None:
        self._callback = callback
        self._size = size
        self._estimated = estimated
        self._told = 0
        self._pending = 0
        callback.set_size(size)

    def advance(self, count: int) -> None:
        """Add a number of bytes that moved."""
        self._pending += count
        if self._pending >= _STEP:
            self._tell()

    def finish(self) -> None:
        """Everything that there was has moved."""
        self._tell()
        if self._estimated:
            self._resize(self._told)
        else:
            self._pending = self._size - self._told
            self._tell()

    def _tell(self) -> None:
        count, self._pending = self._pending, 0
        if self._estimated and self._told + count > self._size:
            self._resize(self._told + count)
        count = min(count, self._size - self._told)
        if count:
            self._told += count
            self._callback.relative_update(count)

    def _resize(self, size: int) -> None:
        if size != self._size:
            self._size = size
            self._callback.set_size(size)


def run_in_threads(
    work: Callable[[T, Callable[[int], object]], object],
    items: Sequence[T],
    advance: Callable[[int], object],
    *,
    threads: int,
    name: str,
) -> None:
    """Do work on items side by side. After a failure no other is begun, and what goes on ends early.

    Args:
        work: is called with an item, and with what it is to tell how many bytes moved, many times.
        items: what it is called with.
        advance: is told all that, in this thread.
        threads: how many there are at most; 1 for none but this one.
        name: what those are called.

    Raises:
        Exception: what ``work`` or ``advance`` raised first.
    """
    if len(items) == 1 or threads == 1:
        for item in items:
            work(item, advance)
        return
    moved: SimpleQueue[int | Future[object]] = SimpleQueue()
    stopped = threading.Event()

    def tell(count: int) -> None:
        if stopped.is_set():
            raise _StoppedError
        moved.put(count)

    def run(item: T) -> object:
        if stopped.is_set():
            raise _StoppedError
        try:
            return work(item, tell)
        except BaseException:
            stopped.set()
            raise

    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        for item in items:
            pool.submit(run, item).add_done_callback(moved.put)
        left = len(items)
        while left:
            if isinstance(told := moved.get(), Future):
                with contextlib.suppress(_StoppedError):  # what failed before is on its way
                    told.result()
                left -= 1
            else:
                advance(told)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


class _StoppedError(Exception):
    """Ends what nobody waits for any more."""


@contextlib.contextmanager
def report_progress(callback: Callback | None, path: str) -> Iterator[Callback]:
    """The caller's callback, which stays open, or a progress bar of our own, closed at the end.

    The bar needs tqdm and a terminal on stderr, and shows only after a second. ``TQDM_DISABLE=1`` switches it off.

    Args:
        callback: the caller's; None for the bar.
        path: whose last part the bar bears.
    """
    if callback is not None:
        yield callback
        return
    bar = _bar(path.rpartition("/")[2])
    try:
        yield bar
    finally:
        bar.close()


def _bar(name: str) -> Callback:
    if not (_on_terminal() and _has_tqdm()):
        return NoOpCallback()
    options = {
        "desc": name,
        "delay": _DELAY,
        "dynamic_ncols": True,
        "miniters": 1,  # sizes of steps differ widely, which tqdm's own choice takes badly
        "unit": "B",
        "unit_divisor": 1024,
        "unit_scale": True,
    }
    return TqdmCallback(tqdm_kwargs=options)


def _has_tqdm() -> bool:
    # Asked beforehand: a TqdmCallback that cannot be made complains again when it is deleted.
    try:
        importlib.import_module("tqdm")
    except ImportError:
        return False
    return True


def _on_terminal() -> bool:
    stderr = sys.stderr
    return stderr is not None and not getattr(stderr, "closed", False) and stderr.isatty()
