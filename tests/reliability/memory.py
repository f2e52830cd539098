"""How much memory a block takes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Within the block, this process has so many bytes of memory of its own more than before, at most."""
    ended, seen = threading.Event(), [anonymous()]

    def watch() -> None:
        while not ended.wait(0.02):
            seen.append(anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    print(f"{(max(seen) - seen[0]) / 2**20:.0f} MiB more at most")
    assert max(seen) - seen[0] < most


def anonymous() -> int:
    """Memory that this process holds, less what is of mapped files; in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
