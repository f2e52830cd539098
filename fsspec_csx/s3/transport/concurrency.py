"""How many requests to have in flight: adapted to the link to each store, and shared by all transfers of a process.

S3 gives one connection about 85 MB/s and answers after 10 to 100 ms, so a far store needs dozens of requests at a time.
A near store is as fast with ten, and each further request costs processor time:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-guidelines.html

The number is found as TCP finds its window. A trial doubles it, and keeps it doubled if the throughput grows by a
quarter, as in the start of BBR (https://queue.acm.org/detail.cfm?id=3022184). A busy store halves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

MIN_REQUESTS = 10
"""The number of requests in flight at first, and where more are not faster."""

MAX_REQUESTS = 128
"""The default of ``max_concurrency``."""

_FAR, _FAR_OF_A_PROCESSOR = 64, 32  # the first number for a far store, and its most for each processor
_FAR_SECONDS = 0.01  # a store is far if the fastest of its first answers takes this long
_NEAR_SECONDS, _LOCAL_SECONDS = 0.005, 0.002  # one answer this fast shows that it is near, or in the same network
_ANSWERS = 2  # how many answers decide that

_GROWTH = 0.25  # by how much a trial that doubles the number must raise the throughput; in proportion if it adds less
_ROUND_SECONDS = 0.05  # the shortest time over which a rate is measured
_ROUNDS = 3  # how many rates start a trial where answers are fast, and end a failed one
_HOLD_SECONDS, _LONGEST_HOLD = 1.0, 30.0  # wait after a failed trial: the first, and the longest
_BUSY = (429, 503)
_PAUSE_SECONDS = 0.1  # between two halvings, and before the first recovery
_FILLED = 0.75  # the share of the limit that must be in flight for a rate to count
_CPU = 0.85  # the most of the processors' time that the requests of a trial may be expected to take


@dataclass
class ConcurrencyLimit:
    """The decisions about the limit, without a clock, sockets or locks.

    Attributes:
        most: the most that ``limit`` can become.
        limit: how many requests may be in flight.
        processors: how many this process may use.
        far: whether answers take so long that many requests are needed.
    """

    most: int = MIN_REQUESTS
    limit: int = MIN_REQUESTS
    processors: int = 2
    far: bool = False
    _answers: int = 0
    _fastest: float = float("inf")
    _base: tuple[int, float] | None = None  # the limit before the trial, and its rate
    # the last that were measured at the present limit
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=_ROUNDS))
    _settled: bool = False  # whether the first round at the present limit has ended
    _next_trial: float = 0.0
    _hold: float = _HOLD_SECONDS
    _throttled_at: float = float("-inf")
    _raised: bool = True  # whether the last change raised the limit
    _goal: int = 0  # the limit to return to after a halving
    _small: int = 0  # how many calls make many small requests
    _assumed: int = 0  # the limit that no trial has found

    @property
    def round_seconds(self) -> float:
        """How long to measure before calling ``measured``; long enough for new connections to answer."""
        return max(_ROUND_SECONDS, 2.5 * self._fastest) if self.far else _ROUND_SECONDS

    def answered(self, seconds: float) -> None:
        """Record how long a response took to arrive."""
        self._answers += 1
        self._fastest = min(self._fastest, seconds)
        if self._answers == _ANSWERS and self._fastest >= _FAR_SECONDS:
            self.far = True
            if self.limit == MIN_REQUESTS:
                self._assume_far()
        elif self._answers == _ANSWERS or (self.far and self._fastest < _NEAR_SECONDS):
            self.far = False
            if self._assumed == (self._base[0] if self._base else self.limit):  # no trial has shown that it is faster
                self._base = None
                self._change(MIN_REQUESTS)

    def expect_small(self, calls: int) -> None:
        """Note how many more, or less, calls make many small requests; a far store gets twice as many of them."""
        self._small += calls
        if self.seems_far and self.limit in (MIN_REQUESTS, self._assumed) and self.limit >= self._goal:
            self._assume_far()

    def _assume_far(self) -> None:
        if self._base is None and self.limit != self._far_limit:
            self._assumed = self._far_limit
            self._change(self._assumed)

    @property
    def seems_far(self) -> bool:
        """Whether the answers so far, perhaps only one, took long."""
        return self.far or (self._answers > 0 and self._fastest >= _FAR_SECONDS)

    @property
    def is_near(self) -> bool:
        """Whether answers have shown that the store is not far."""
        return not self.far and (self._answers >= _ANSWERS or self._fastest < _NEAR_SECONDS)

    @property
    def _far_limit(self) -> int:
        number = min(_FAR, _FAR_OF_A_PROCESSOR * self.processors)
        return max(MIN_REQUESTS, min(2 * number if self._small else number, self.most))

    def measured(self, now: float, rate: float, cpu: float) -> None:
        """Record the throughput of a round during which the limit was nearly used up.

        Args:
            now: any clock, in seconds.
            rate: bytes per second.
            cpu: the share of the processors that this process has used.
        """
        if not self._settled:
            self._settled = True
            return
        self._rates.append(rate)
        if self.limit < self._goal:
            if now - self._throttled_at >= _PAUSE_SECONDS:
                self._change(min(self._goal, self.limit + max(1, self.limit // 8)))
        elif self._base is not None:
            self._judge(now, rate, cpu)
        elif now >= self._next_trial and len(self._rates) >= (1 if self.far else _ROUNDS):
            self._try_more(max(self._rates), cpu)

    def throttled(self, now: float) -> None:
        """Record that the store is busy, or that a connection stalled."""
        if now - self._throttled_at < _PAUSE_SECONDS:
            return
        self._throttled_at = now
        if self._raised:  # otherwise the answer may be to a request from before the last halving
            self._goal = self._base[0] if self._base else self.limit * 7 // 8
            self._fail(now)
        self._base = None
        self._change(max(1, self.limit // 2))

    def _judge(self, now: float, rate: float, cpu: float) -> None:
        assert self._base is not None
        before, base = self._base
        if rate >= base * (1 + _GROWTH * (self.limit / before - 1)):
            self._base, self._hold = None, _HOLD_SECONDS
            self._try_more(rate, cpu)
        elif len(self._rates) >= _ROUNDS:
            self._base = None
            self._change(before)
            self._fail(now)

    def _try_more(self, rate: float, cpu: float) -> None:
        more = min(2 * self.limit, self.most)
        if more > self.limit and cpu * more / self.limit < _CPU:
            self._base = self.limit, rate
            self._change(more)

    def _fail(self, now: float) -> None:
        self._next_trial = now + self._hold
        self._hold = min(2 * self._hold, _LONGEST_HOLD)

    def _change(self, limit: int) -> None:
        self._raised, self.limit, self._settled = limit > self.limit, limit, False
        self._rates.clear()


class _FixedLimit(ConcurrencyLimit):
    """A limit that never changes."""

    def _change(self, limit: int) -> None:
        pass


class RequestSlots:
    """The slots for requests to one store. Event loops wait for a turn; threads report bytes and response times.

    ``async with`` waits for a turn, and frees the slot at the end of the block.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limit = ConcurrencyLimit(processors=_processors())
        self._taken = 0
        self._waiting: deque[Future[None]] = deque()
        self._idle = True  # whether this round had too few requests in flight for its rate to count
        self._begin_round(time.monotonic())

    def allow(self, most: int) -> None:
        """Raise the most that ``limit`` can become to at least ``most``."""
        with self._lock:
            self._limit.most = max(self._limit.most, most)

    @contextlib.contextmanager
    def fixed(self, number: int) -> Iterator[None]:
        """Fix the limit within the block; for measurements."""
        with self._lock:
            before, self._limit = self._limit, _FixedLimit(most=number, limit=number, _answers=_ANSWERS)
        try:
            yield
        finally:
            with self._lock:
                self._limit = before

    def expect_small(self, calls: int) -> None:
        """Note how many more, or less, calls make many small requests; a far store gets twice as many of them."""
        with self._lock:
            self._limit.expect_small(calls)
            turns = self._turns()
        self._begin(turns)

    @property
    def limit(self) -> int:
        """How many requests may be in flight."""
        return self._limit.limit

    @property
    def seems_far(self) -> bool:
        """Whether the answers so far, perhaps only one, took long."""
        return self._limit.seems_far

    @property
    def is_near(self) -> bool:
        """Whether answers have shown that the store is not far."""
        return self._limit.is_near

    @property
    def is_local(self) -> bool:
        """Whether an answer came so fast that the store is in the same network: one faster than S3's."""
        return self._limit._fastest < _LOCAL_SECONDS

    @property
    def exceeded(self) -> bool:
        """Whether more requests are in flight than the limit allows now."""
        return self._taken > self._limit.limit

    @property
    def free(self) -> int:
        """How many more requests may be in flight; at least one."""
        return max(1, self._limit.limit - self._taken)

    @property
    def contended(self) -> bool:
        """Whether requests wait for a turn."""
        return bool(self._waiting)

    async def __aenter__(self) -> None:
        with self._lock:
            if self._taken < self._limit.limit:
                self._taken += 1
                return
            turn: Future[None] = Future()
            self._waiting.append(turn)
        try:
            await asyncio.wrap_future(turn)
        except BaseException:
            if not turn.cancel():  # the turn was granted meanwhile
                self._give_back()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        with self._lock:
            self._taken -= 1
            turns = self._turns()
            self._idle = self._idle or not self._filled
        self._begin(turns)

    def moved(self, count: int) -> None:
        """Record that a thread has received or sent bytes."""
        now = time.monotonic()
        with self._lock:
            self._bytes += count
            if now - self._round_began < self._limit.round_seconds:
                return
            if not self._idle and self._filled:
                seconds = now - self._round_began
                cpu = (time.process_time() - self._cpu_began) / seconds / _processors()
                self._limit.measured(now, self._bytes / seconds, cpu)
            self._begin_round(now)
            turns = self._turns()
        self._begin(turns)

    def answered(self, seconds: float, status: int = 200) -> None:
        """Record how long a response took to arrive, or that the store is busy."""
        if status in _BUSY:  # it takes little time, however far the store is
            self.throttled()
            return
        with self._lock:
            self._limit.answered(seconds)
            turns = self._turns()
        self._begin(turns)

    def throttled(self) -> None:
        """Record that the store is busy, or that a connection stalled."""
        with self._lock:
            self._limit.throttled(time.monotonic())

    def _begin_round(self, now: float) -> None:
        self._round_began, self._cpu_began, self._bytes = now, time.process_time(), 0
        self._idle = not self._filled

    @property
    def _filled(self) -> bool:
        """Whether the limit is nearly used up."""
        return self._taken >= _FILLED * self._limit.limit

    def _turns(self) -> list[Future[None]]:
        """Grant turns, and return them; the caller begins them without the lock, which a returned turn takes."""
        turns = []
        while self._waiting and self._taken < self._limit.limit:
            turn = self._waiting.popleft()
            if turn.set_running_or_notify_cancel():
                self._taken += 1
                turns.append(turn)
        return turns

    @staticmethod
    def _begin(turns: list[Future[None]]) -> None:
        for turn in turns:
            turn.set_result(None)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_of_endpoints: dict[str, RequestSlots] = {}


def slots_for(endpoint: str, most: int) -> RequestSlots:
    """Return the turns of this process at the URL of an endpoint; a forked process gets new ones.

    The limit of all callers together is the largest number ``most`` of any of them.
    """
    slots = _of_endpoints.setdefault(endpoint, RequestSlots())
    slots.allow(most)
    return slots


os.register_at_fork(after_in_child=_of_endpoints.clear)
