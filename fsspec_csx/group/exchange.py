"""Fills memory in all processes of a group, while each process reads only a share of the bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from fsspec_csx.group.processes import Processes

_LEAST, _MOST = 8 * 2**20, 64 * 2**20


class Piece(NamedTuple):
    """Bytes to read.

    Attributes:
        what: identifies the bytes.
        memory: the memory to fill.
    """

    what: Any
    memory: memoryview


Read = Callable[[Sequence[Piece], Callable[[int], object]], Sequence[int]]
"""Fills the memory of pieces, and returns a number for each; it calls the function with numbers of bytes read."""


def share_size(total: int, processes: int) -> int:
    """Return how many bytes a process reads at a time, before it sends them to the others."""
    return max(_LEAST, min(_MOST, -(-total // processes)))


def exchange(
    processes: Processes,
    step: str,
    shares: Sequence[Sequence[Piece]],
    read: Read,
    *,
    advance: Callable[[int], object],
    threads: int,
) -> list[int]:
    """Fill the memory of all pieces in all processes; the processes take turns in reading the shares.

    A process reads its next shares while it receives those of others. Bytes arrive directly in their memory.

    Args:
        step: see ``Processes.gather``.
        shares: the same in all processes.
        read: reads a share.
        advance: called in this thread with the number of bytes received.
        threads: how many shares a process reads at a time.

    Returns:
        The numbers that ``read`` returned for each piece, in order.
    """
    step = f"{step} ({_digest(shares)})"
    stopped = threading.Event()

    def check(count: int) -> None:
        if stopped.is_set():
            raise InterruptedError

    found: list[int] = []
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fsspec_csx-share")
    try:
        own = {n: pool.submit(read, shares[n], check) for n in range(processes.rank, len(shares), processes.size)}
        for start in range(0, len(shares), processes.size):
            mine = own.pop(start + processes.rank, None)
            with processes.failing():
                answer = mine and mine.result()
            answers = processes.gather(step, answer)
            for owner, share in enumerate(shares[start : start + processes.size]):
                processes.broadcast([piece.memory for piece in share], owner)
                found += answers[owner]
            advance(sum(len(piece.memory) for share in shares[start : start + processes.size] for piece in share))
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)  # no thread writes to the memory any more
    return found


def _digest(shares: Sequence[Sequence[Piece]]) -> str:
    sizes = [[(piece.what, len(piece.memory)) for piece in share] for share in shares]
    return hashlib.blake2b(repr(sizes).encode(), digest_size=8).hexdigest()
