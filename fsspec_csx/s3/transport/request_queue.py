"""RequestQueue: makes many requests that are signed from one template; each connection takes the next of a queue.

botocore makes the first request, from which the template is made. It also repeats the requests that fail, or raises
their errors.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fsspec_csx.errors import EndpointError
from fsspec_csx.s3.transport.call_scope import Body, Scope, finish_despite_cancel, scope
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS
from fsspec_csx.s3.transport.learned_template import FAILURES, Learned, LearnedTemplate
from fsspec_csx.s3.transport.link import Link
from fsspec_csx.s3.transport.queued_requests import QueuedPart, QueuedRead, QueuedWrite, Turn
from fsspec_csx.s3.transport.request_context import using
from fsspec_csx.s3.transport.slow_connections import SlowConnections
from fsspec_csx.s3.transport.socket_loop import LocalCalls, SocketLoop, Steps, run_alone

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.transfer import Transfer


# A thread ends its turn after this time if other requests wait.
_TURN_SECONDS = 0.2
_THREADS = 4  # the most threads that share the connections
_TICK_SECONDS = 0.02  # how often finished requests are reported: waking the event loop for each would be slow
_LINGER_SECONDS = 0.02  # how long a thread waits for the next request to be added: starting its turn anew takes longer
_RENEWAL_SECONDS = 5.0  # how often to check for new credentials
_REFUSED = (400, 401, 403)
_BUSY = (429, 500, 502, 503, 504)
_WAIT, _LONGEST_WAIT = (0.05, 0.3), 60.0  # seconds before a request to a busy store is repeated
_waits = random.Random()

R = TypeVar("R", bound=QueuedRead | QueuedWrite | QueuedPart)


class RequestQueue(Generic[R]):
    """Makes requests in threads: one for each connection, or few for all.

    Args:
        transfer: its threads and connections are used; or those of the client that makes the first request.
        alike: the template of the requests; None if botocore must make them all.
        requests: in the order in which they start.
        alone: makes a request through botocore.
        finished: called on the event loop for each request that has succeeded by the template.
        settled: see ``LearnedTemplate.learn``.
        most: how many at a time; no limit if negative, as in fsspec.
        shared: whether few threads make all requests to a far store, which is faster if they are for small objects.
        growing: whether ``add`` may add requests, until ``close``.
    """

    def __init__(
        self,
        transfer: Transfer,
        alike: LearnedTemplate | None,
        requests: Iterable[R],
        alone: Callable[[R], Awaitable[object]],
        finished: Callable[[R], object] = lambda request: None,
        *,
        settled: Callable[[], bool] = lambda: True,
        most: int | None = None,
        shared: bool = False,
        growing: bool = False,
    ) -> None:
        self._transfer, self._alike = transfer, alike
        self._learned: Learned | None = None
        self._alone, self._finished, self._settled = alone, finished, settled
        self._queue = deque(requests)
        self._added = threading.Condition()
        self._left, self._growing = len(self._queue), growing
        self._ended: deque[R] = deque()
        self._most = min(transfer.in_flight, most if most and most > 0 else transfer.in_flight)
        self._takers = self._idle = 0  # how many there are, and how many of them are about to take a request
        self._lingering = 0  # how many threads wait for a request to be added
        number = min(_THREADS, os.cpu_count() or 1) if shared and transfer.exchange.shares_threads else 0
        self._loops = [SocketLoop(transfer.in_thread, transfer.exchange.limit) for _ in range(number)]
        self._local = LocalCalls()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._slow = SlowConnections(self._queue)  # a function of ``self`` would keep the memory of the requests
        self._done: asyncio.Future[None] | None = None  # until ``run``
        self._context: contextvars.Context | None = None  # of ``run``
        self._serving = self._ready = False
        self._renewed_at = 0.0
        self._refused, self._refusals = False, 0
        self._invalid_responses = 0  # how many consecutive responses were not valid for their requests

    async def run(self) -> None:
        """Make the requests; when this returns or raises, no thread uses their memory any more."""
        self._scope, self._context = Scope(scope()), contextvars.copy_context()
        self._done = asyncio.get_running_loop().create_future()
        self._wake()
        try:
            await self._done
        finally:
            with self._added:
                self._queue.clear()
            self.close()
            for task in self._tasks:
                task.cancel()
            await finish_despite_cancel(self._finish(self._scope.close()))

    async def _finish(self, turns: Sequence[Body]) -> None:
        await self._transfer.give_up_and_wait(turns)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()  # they refer to these requests, and so to their memory
        self._ended.clear()
        self._context = None

    def add(self, request: R) -> None:
        """Add a request; in any thread."""
        with self._added:
            self._left += 1
            self._queue.append(request)
            self._added.notify()
            taken = len(self._queue) <= self._lingering
        if not taken and self._takers < self._width:
            self._wake_loop()

    def close(self) -> None:
        """Let ``run`` return when all requests have been made; in any thread."""
        with self._added:
            self._growing = False
            self._added.notify_all()
        self._wake_loop()

    def _wake_loop(self) -> None:
        if (done := self._done) is not None:
            done.get_loop().call_soon_threadsafe(self._wake, context=self._context)

    def _wake(self) -> None:
        """Serve the requests in the queue; end if there are no more to come."""
        if self._done is None or self._done.done():
            return
        self._report_ended()
        if self._queue and not self._serving:
            self._serving = True
            self._start(self._serve())
        elif self._ready:
            self._start_takers()
        self._end_if_all_are_made()

    async def _serve(self) -> None:
        """Start requests, and report those that have ended, as long as there are any."""
        try:
            await self._learn()
            while self._left:
                if time.monotonic() - self._renewed_at > _RENEWAL_SECONDS:
                    await self._renew()
                self._ready = True
                self._start_takers()
                await asyncio.sleep(_TICK_SECONDS)
                self._report_ended()
                self._slow.look()
        finally:
            self._serving = self._ready = False

    async def _learn(self) -> None:
        """Know the template; until then, botocore makes the first request, and no other is made."""
        alike = self._alike
        if alike is None or self._learned is not None or not self._queue:
            return
        if first := alike.unknown:
            request = self._queue.popleft()
            make = functools.partial(self._make_alone, request)
            named = () if request.key is None else (request.key,)
            self._start(alike.learn(make, request.kind, *named, settled=self._settled))
        self._learned = await alike.known()
        if self._learned is not None and first:
            self._transfer = self._learned.transfer

    def _start(self, work: Awaitable[object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        assert self._done is not None
        if not task.cancelled() and (error := task.exception()) is not None and not self._done.done():
            self._done.set_exception(error)

    @property
    def _width(self) -> int:
        return min(self._most, self._transfer.slots.limit)

    def _start_takers(self) -> None:
        """Start as many tasks as may have requests in flight; a thread ends its turn early if more wait."""
        for _ in range(min(self._width - self._takers, len(self._queue) - self._idle - self._lingering)):
            self._start(self._take_turns(self._takers))
            self._takers += 1
            self._count_idle(1)

    def _count_idle(self, change: int) -> None:
        with self._added:
            self._idle += change

    async def _take_turns(self, number: int) -> None:
        while self._queue and self._takers <= self._width:  # waiting for a turn would end those of the others
            if self._learned is None:
                request = self._queue.popleft()
                self._count_idle(-1)
                await self._make_alone(request)
                self._count_idle(1)
                continue
            async with self._transfer.turn():
                turn = Turn()
                begin = functools.partial(self._begin, number, turn)
                failed, seconds = await asyncio.wrap_future(self._scope.begin(turn, begin))
            self._report_ended()
            if failed is not None:
                failure = failed.body.failure if failed.body is not None else None
                if failure is not None and not isinstance(failure, EndpointError):
                    raise failure  # of this machine, such as a full disk: repeating the request would not help
                await asyncio.sleep(seconds)
                await self._repeat(failed)
            self._count_idle(1)
        self._count_idle(-1)
        self._takers -= 1
        if self._queue:  # added meanwhile
            self._wake()

    async def _make_alone(self, request: R) -> None:
        with using(first=request.first):
            await self._alone(request)
        self._end_one()

    def _begin(self, number: int, turn: Turn) -> Future[tuple[R | None, float]]:
        if self._loops and self._transfer.width > MIN_REQUESTS:
            with suppress(OSError):  # too many open files for one more loop
                return self._loops[number % len(self._loops)].run(self._work(turn, shares_thread=True))
        return self._transfer.in_thread(run_alone, self._work(turn))

    async def _repeat(self, failed: R) -> None:
        """Let botocore make a failed request; then use its client, and the credentials that it may have renewed."""
        failed.forget_failures()
        clients = [self._transfer]  # a function of ``self`` would keep the memory of the requests
        with using(sent=lambda _, transfer: clients.append(transfer)):
            await self._make_alone(failed)
        self._transfer = clients[-1]
        if self._alike is not None and self._learned is not None:
            self._alike.failed(self._learned)
        if self._refused and self._refusals < FAILURES:
            self._refusals += 1
            self._refused = False
            await self._renew()

    async def _renew(self) -> None:
        """Use the present credentials; if there are none, botocore makes the requests."""
        self._renewed_at = time.monotonic()
        if self._learned is not None:
            self._refused |= not await self._transfer.signer.renew(self._learned.template)

    def _report_ended(self) -> None:
        while self._ended:
            self._finished(self._ended.popleft())
            self._end_one()

    def _end_one(self) -> None:
        with self._added:
            self._left -= 1
        self._end_if_all_are_made()

    def _end_if_all_are_made(self) -> None:
        assert self._done is not None
        if not self._left and not self._growing and not self._done.done():
            self._done.set_result(None)

    def _work(self, turn: Turn, *, shares_thread: bool = False) -> Steps[tuple[R | None, float]]:
        """Make requests on a connection until one fails; return it, and how long to wait before repeating it."""
        self._count_idle(-1)
        slots, began = self._transfer.slots, time.monotonic()
        assert self._learned is not None
        link = self._transfer.exchange.link(self._learned.template.url, shares_thread=shares_thread)
        try:
            while not turn.given_up and not self._scope.closed:
                if (request := self._next()) is None:
                    break
                if self._refused or self._invalid_responses >= FAILURES:
                    return request, 0.0
                wait = yield from self._try(turn, request, link)
                if wait is not None:
                    return request, wait
                self._ended.append(request)
                if slots.exceeded or (slots.contended and time.monotonic() - began > _TURN_SECONDS):
                    break
        finally:
            link.give_back()
        return None, 0.0

    def _next(self) -> R | None:
        """Take a request from the queue; if it is empty but grows, wait a moment."""
        with self._added:
            if not self._queue and self._growing and not self._transfer.slots.contended:
                self._lingering += 1
                self._added.wait(_LINGER_SECONDS)
                self._lingering -= 1
            return self._queue.popleft() if self._queue else None

    def _try(self, turn: Turn, request: R, link: Link) -> Steps[float | None]:
        """Make a request; return None if it succeeded, or how long to wait before repeating it."""
        turn.request = request
        try:
            if not isinstance(request, QueuedRead):
                yield from self._local.made(request.prepare)
            while not turn.given_up:
                assert request.body is not None
                attempt = self._slow.begin(request.body, whole=isinstance(request, QueuedWrite))
                wait: float | None = 0.0
                try:
                    wait = yield from self._attempt(turn, request, link)
                    return wait
                except Exception:
                    if not attempt.ended:
                        raise
                finally:
                    self._slow.end(attempt, succeeded=wait is None)
            return 0.0
        except Exception:  # botocore repeats the request, and raises the error
            return 0.0
        finally:
            turn.request, turn.accepting = None, False

    def _attempt(self, turn: Turn, request: R, link: Link) -> Steps[float | None]:
        assert self._learned is not None
        answer = yield from request.making(self._transfer, self._learned.template, link)
        if answer.status_code in _BUSY and request.repeatable:
            after = answer.headers.get("Retry-After", "")
            return min(float(after), _LONGEST_WAIT) if after.isdecimal() else _waits.uniform(*_WAIT)
        self._refused = self._refused or answer.status_code in _REFUSED
        if answer.status_code >= 300:
            return 0.0
        if not request.is_valid_response(answer):
            self._invalid_responses += 1
            return 0.0
        self._invalid_responses, turn.accepting = 0, True
        return None if not turn.given_up and (yield from self._local.made(request.accept)) else 0.0
