"""The measured share of processor time with Python's lock held, for programs whose share is known."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable

import lock_share
import pytest

_BUFFER = bytes(2**20)


def _python(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def _native(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        hashlib.sha256(_BUFFER)


def _half(seconds: float) -> None:
    for _ in range(10):
        _python(seconds / 20)
        _native(seconds / 20)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(("work", "least", "most"), [(_python, 0.9, 1.0), (_native, 0.0, 0.1), (_half, 0.35, 0.65)])
def test_share_of_known_programs(work: Callable[[float], None], least: float, most: float) -> None:
    """Python code holds the lock, hashing a large buffer does not; two threads at once change nothing."""
    with lock_share.watched() as found:
        threads = [threading.Thread(target=work, args=(0.4,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found.cpu_seconds > 0.7
    assert least <= found.share <= most
