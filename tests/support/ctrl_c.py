"""Ctrl-C within a block of a test, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest


@contextlib.contextmanager
def ctrl_c(after: float, struck: Callable[[], object] = lambda: None, *, elsewhere: bool = False) -> Iterator[None]:
    """Press Ctrl-C once, so many seconds after the block has begun; if the block ends earlier, wait for it.

    To be entered below ``pytest.raises(KeyboardInterrupt)``.

    Args:
        after: how many seconds.
        struck: is called in the handler of the signal.
        elsewhere: whether another thread receives the signal, which wakes the main thread from no wait.
    """
    waiting, over = False, threading.Event()

    def strike(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            struck()
            raise KeyboardInterrupt

    def press() -> None:
        while not waiting:  # the block has not begun
            time.sleep(0.001)
        if not over.wait(after):
            if elsewhere:
                signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            else:
                os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, strike)
    thread = threading.Thread(target=press)
    try:
        thread.start()
        try:
            waiting = True
            yield
            time.sleep(100)
        finally:
            waiting = False
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGINT, previous)


def interrupted(work: Callable[[], object], after: float) -> None:
    """Press Ctrl-C so many seconds after some work has begun."""
    with pytest.raises(KeyboardInterrupt), ctrl_c(after):
        work()
