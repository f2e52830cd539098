"""The last requests of a read: one that is slow is made again beside itself, and the first that is whole counts."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fsspec_csx.s3.transport.byte_range import RangeRequest

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.signed_reads import SignedRead

# A request is slow that takes so many times as long as most did, and so much longer; a near store is rarely slow, but
# often busy.
_TIMES = 2
_SECONDS_FAR, _SECONDS_NEAR = 0.4, 2.0
# Bytes of all second requests: each has memory of its own.
_MOST = 32 * 2**20


class Race:
    """Which requests run, how long others took, and the second requests of the slow ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began: dict[SignedRead, float] = {}
        self._seconds: list[float] = []
        self._twins: dict[SignedRead, tuple[RangeRequest, memoryview]] = {}
        self._won: set[SignedRead] = set()

    @contextmanager
    def entered(self, read: SignedRead) -> Iterator[None]:
        """Within the block, its first request runs."""
        self._began[read] = start = time.monotonic()
        try:
            yield
        finally:
            self._began.pop(read, None)
            if read.wanted.complete:
                self._seconds.append(time.monotonic() - start)

    def slow(self, now: float, *, far: bool) -> list[SignedRead]:
        """The requests that are worth a second one; ``far``: see ``Slots``."""
        if not self._seconds:
            return []
        margin = _SECONDS_FAR if far else _SECONDS_NEAR
        usual = statistics.median(self._seconds)
        found, room = [], _MOST - sum(len(memory) for _, memory in self._twins.values())
        for read, began in list(self._began.items()):
            wanted, taken = read.wanted, now - began
            missing = wanted.length - wanted.filled
            late = taken > max(_TIMES * usual, usual + margin)
            # At its own pace it would need longer than a new one.
            behind = taken * missing > usual * max(wanted.filled, 1)
            if late and behind and read not in self._twins and missing <= room and wanted.header():
                found.append(read)
                room -= missing
        return found

    def twin(self, read: SignedRead) -> RangeRequest:
        """A second request, of the bytes that are missing, with memory of its own."""
        wanted = read.wanted
        twin = RangeRequest(wanted.start + wanted.filled)
        memory = memoryview(bytearray(wanted.end - twin.start))
        twin.add(0, twin.start, memory)
        self._twins[read] = twin, memory
        return twin

    def won(self, read: SignedRead, twin: RangeRequest) -> bool:
        """Whether the second request was faster, and the thread of the first does not use its memory any more.

        If the thread uses it, it is made to end soon, and to call ``replace``.
        """
        if not twin.complete or read.wanted.complete or read.wanted.etag not in (None, twin.etag):
            return False
        self._won.add(read)
        read.wanted.give_up()
        return not read.wanted.harmful

    def replace(self, read: SignedRead) -> bool:
        """Fill what is missing from the second request, if that has won."""
        with self._lock:
            if read not in self._won:
                return False
            wanted, (winner, memory) = read.wanted, self._twins[read]
            wanted.etag, wanted.total, wanted.headers = winner.etag, winner.total, winner.headers
            while len(target := wanted.next_buffer(wanted.length)):
                offset = wanted.start + wanted.filled - winner.start
                target[:] = memory[offset : offset + len(target)]
                wanted.advance(len(target))
            return True
