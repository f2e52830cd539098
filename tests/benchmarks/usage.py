"""The processor time and the memory of this process."""

from __future__ import annotations

import contextlib
import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc/self")
_SAMPLE_SECONDS = 0.002


def cpu_seconds() -> float:
    """Of all threads, in their own code and in the kernel."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def page_faults() -> int:
    """Pages of memory that were touched for the first time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@contextlib.contextmanager
def extra_memory() -> Iterator[list[int]]:
    """The most memory within the block beyond that before it, in a list filled when it is left; empty if unknown."""
    before, found = _status("VmRSS"), list[int]()
    with _peak() as peak:
        yield found
    if before is not None and peak:
        found.append(peak[0] - before)


@contextlib.contextmanager
def _peak() -> Iterator[list[int]]:
    peak: list[int] = []
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:  # not every container may
        with _sampled(peak):
            yield peak
        return
    yield peak
    if (found := _status("VmHWM")) is not None:
        peak.append(found)


@contextlib.contextmanager
def _sampled(peak: list[int]) -> Iterator[None]:
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            if (found := _status("VmRSS")) is not None:
                peak[:] = [max(found, *peak)] if peak else [found]

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _status(name: str) -> int | None:
    """A line of the kernel's account of this process, in bytes."""
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB", (_PROC / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
