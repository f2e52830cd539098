"""Work on several files at once, and waits for work in other threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Result = TypeVar("Result")

_THREADS = 16

SIGNAL_SECONDS = 1.0
"""The longest wait of the main thread at a time.

A wait without a timeout would not notice a signal that came just before it, or that another thread received.
"""


def wait_for(future: Future[Any], timeout: float | None = None) -> float | None:
    """Wait until a future is done, or ``timeout`` is nearly over, and return the rest of it; signals are noticed."""
    left = timeout
    while not future.done() and (left is None or left > SIGNAL_SECONDS):
        with contextlib.suppress(futures.TimeoutError, futures.CancelledError):
            Future.exception(future, SIGNAL_SECONDS)
        left = None if left is None else left - SIGNAL_SECONDS
    return left


def result_of(future: Future[T]) -> T:
    """Wait for a future, and return its result; signals are noticed."""
    return future.result(wait_for(future))


def take(events: SimpleQueue[T]) -> T:
    """Wait for the next item of a queue; signals are noticed."""
    while True:
        with contextlib.suppress(Empty):
            return events.get(timeout=SIGNAL_SECONDS)


def map_parallel(fs: Any, function: Callable[[T], Result], items: Iterable[T]) -> list[Result]:
    """Call a function for each item, in threads if the filesystem allows it (None is the local one)."""
    if not getattr(fs, "async_impl", False):
        return [function(item) for item in items]
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(function, items))


def run_in_threads(
    work: Callable[[T, Callable[[int], object]], object],
    items: Sequence[T],
    advance: Callable[[int], object],
    *,
    threads: int,
    name: str,
) -> None:
    """Process items in parallel. After a failure no more items are started, and running ones end early.

    Args:
        work: called with an item, and a function to call with the number of bytes at each step.
        advance: called in this thread with each number of bytes.
        threads: the maximum number of threads; with 1, the work is done in this thread.
    """
    if len(items) == 1 or threads == 1:
        for item in items:
            work(item, advance)
        return
    moved: SimpleQueue[int | Future[object]] = SimpleQueue()
    stopped = threading.Event()

    def report(count: int) -> None:
        if stopped.is_set():
            raise _StoppedError
        moved.put(count)

    def run(item: T) -> object:
        if stopped.is_set():
            raise _StoppedError
        try:
            return work(item, report)
        except BaseException:
            stopped.set()
            raise

    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    try:
        for item in items:
            pool.submit(run, item).add_done_callback(moved.put)
        left = len(items)
        while left:
            if isinstance(event := take(moved), Future):
                with contextlib.suppress(_StoppedError):  # another event brings the first failure
                    event.result()
                left -= 1
            else:
                advance(event)
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


class _StoppedError(Exception):
    """Ends a worker after another one failed."""
