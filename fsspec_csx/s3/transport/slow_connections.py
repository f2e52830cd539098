"""Slow connections: a request that takes much longer than its peers gets another connection.

There, a range continues after its last byte, and a body is sent again; not an object that the server may have already,
as it could store that late, in place of a newer object. The last request decides how long a transfer takes, and S3
advises replacing slow ones:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-design-patterns.html
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Collection
from statistics import median
from typing import Any

from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.request_body import RequestBody

logger = logging.getLogger("fsspec_csx")

_LOOK_SECONDS = 0.1  # between two checks of the running requests
_PEERS, _RECENT = 4, 100  # how many requests must have ended before others count as slow, and the most that count
_TIMES = 3  # a slow request has taken this many times as long as its peers, and at least _LEAST_SECONDS
_LEAST_SECONDS = 0.5
_MOST = 4  # the most connections of one transfer to replace


class Attempt:
    """A request on one connection; ``whole`` if its body is an object."""

    def __init__(self, body: RangeRequest | RequestBody, *, whole: bool) -> None:
        self.began = time.monotonic()
        self.body, self._whole = body, whole
        self.before = body.filled if isinstance(body, RangeRequest) else 0
        self.ended = False

    def end(self) -> bool:
        """Shut down the connection of this attempt; return whether there is one."""
        if (interrupt := self.body.interrupt) is not None:
            self.ended = bool(interrupt())
        return self.ended

    @property
    def length(self) -> int:
        return self.body.length - self.before

    def seconds_left(self, taken: float) -> float:
        """Return how long the rest will take at the present rate; infinity if all of a part was sent."""
        moved = self.body.filled - self.before if isinstance(self.body, RangeRequest) else self.body.sent
        if self._whole and moved == self.length:
            return 0.0
        return taken * (self.length / moved - 1) if 0 < moved < self.length else float("inf")


class SlowConnections:
    """Shuts down slow connections of one transfer: few, and only when no more requests are ``waiting`` to start."""

    def __init__(self, waiting: Collection[Any]) -> None:
        self._waiting = waiting
        self._running: set[Attempt] = set()
        self._taken: deque[tuple[float, int]] = deque(maxlen=_RECENT)  # seconds and bytes of the finished requests
        self._left = _MOST
        self._looked_at = 0.0

    def begin(self, body: RangeRequest | RequestBody, *, whole: bool) -> Attempt:
        """Watch a request until ``end``; ``whole`` if its body is an object."""
        attempt = Attempt(body, whole=whole)
        self._running.add(attempt)
        return attempt

    def end(self, attempt: Attempt, *, succeeded: bool) -> None:
        """End the watch of a request."""
        self._running.discard(attempt)
        if succeeded:
            self._taken.append((time.monotonic() - attempt.began, attempt.length))

    def look(self) -> None:
        """Shut down connections that are slow now; called often."""
        now, before = time.monotonic(), self._looked_at
        if now - before < _LOOK_SECONDS:
            return
        self._looked_at, taken = now, list(self._taken)
        if now - before > 2 * _LOOK_SECONDS:  # this process was suspended, or something held the GIL
            for attempt in list(self._running):
                attempt.began += now - before if attempt.began < before else 0
        if self._waiting or not self._left or len(taken) < _PEERS:
            return
        seconds, length = median(each[0] for each in taken), median(each[1] for each in taken)
        for attempt in list(self._running):
            usual = max(seconds * max(1.0, attempt.length / max(length, 1)), _LEAST_SECONDS / _TIMES)
            self._end_if_slow(attempt, usual)

    def _end_if_slow(self, attempt: Attempt, usual: float) -> None:
        taken = time.monotonic() - attempt.began
        slow = taken > _TIMES * usual and attempt.seconds_left(taken) > usual
        if slow and self._left and not attempt.ended and attempt.end():
            self._left -= 1
            logger.debug("A request takes %.1f s, others %.1f s: it gets another connection", taken, usual)
