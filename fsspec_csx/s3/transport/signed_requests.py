"""SignedRequests: makes many requests that are signed from one template; each connection takes the next of a queue.

Requests that do not succeed at once are left to botocore, which retries them or raises their errors.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import random
import select
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fsspec_csx.errors import EndpointError
from fsspec_csx.s3.transport.call_scope import Scope, finish_despite_cancel, scope
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS
from fsspec_csx.s3.transport.learned_template import FAILURES
from fsspec_csx.s3.transport.link import Link
from fsspec_csx.s3.transport.queued_requests import SignedRead, SignedWrite
from fsspec_csx.s3.transport.slow_connections import SlowConnections
from fsspec_csx.s3.transport.socket_loop import LocalCalls, SocketLoop, Steps, run_alone

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.pool import Transfer
    from fsspec_csx.s3.transport.signer import Signer

logger = logging.getLogger("fsspec_csx")

# A thread ends its turn after this time if other requests wait.
_TURN_SECONDS = 0.2
_THREADS = 4  # the most threads that share the connections
_TICK_SECONDS = 0.02  # how often finished requests are reported: waking the event loop for each would be slow
_RENEWAL_SECONDS = 5.0  # how often to check for new credentials
_REFUSED = (400, 401, 403)
_BUSY = (429, 500, 502, 503, 504)
_WAIT, _LONGEST_WAIT = (0.05, 0.3), 60.0  # seconds before a request to a busy store is repeated
_waits = random.Random()


R = TypeVar("R", bound=SignedRead | SignedWrite)


class _Turn:
    """What a thread does in its turn, as the body of a scope."""

    def __init__(self) -> None:
        self.thread: Future[Any] | None = None
        self.request: SignedRead | SignedWrite | None = None
        self.accepting = False  # whether the thread is processing the bytes received
        self.given_up = False

    def give_up(self) -> None:
        """Make the thread end soon."""
        self.given_up = True
        if (request := self.request) is not None:
            request.give_up()

    @property
    def uses_caller_memory(self) -> bool:
        """Whether the thread uses the caller's memory, or processes received bytes."""
        body = None if (request := self.request) is None else request.body
        return self.accepting or (body is not None and body.uses_caller_memory)


class SignedRequests(Generic[R]):
    """Makes requests in threads: one for each connection, or few for all.

    Args:
        transfer: its threads and connections are used.
        template: makes the requests.
        requests: in the order in which they start.
        finished: called on the event loop for each request that has succeeded.
        failed: makes a failed request in another way.
        most: how many at a time; no limit if negative, as in fsspec.
        signer: returns the signer of the present client, whose credentials may be newer than those of ``transfer``.
        shared: whether few threads make all requests to a far store, which is faster if they are for small objects.
    """

    def __init__(
        self,
        transfer: Transfer,
        template: Any,
        requests: Iterable[R],
        finished: Callable[[R], object],
        failed: Callable[[R], Awaitable[object]],
        most: int | None = None,
        signer: Callable[[], Signer] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        self._transfer, self._template = transfer, template
        self._signer = signer or (lambda: transfer.signer)
        self._queue = deque(requests)
        self._finished, self._failed = finished, failed
        self._scope = Scope(scope())
        self._left = len(self._queue)
        self._ended: deque[R] = deque()
        self._most = min(self._left, transfer.in_flight, most if most and most > 0 else transfer.in_flight)
        self._takers = 0
        number = (
            min(_THREADS, os.cpu_count() or 1)
            if shared and hasattr(select, "poll") and transfer.exchange.shares_threads
            else 0
        )
        self._loops = [SocketLoop(transfer.in_thread, transfer.exchange.limit) for _ in range(number)]
        self._local = LocalCalls()
        self._tasks: list[asyncio.Future[None]] = []
        self._slow = SlowConnections(self._queue)  # a function of ``self`` would keep the memory of the requests
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refused, self._refusals = False, 0
        self._invalid_responses = 0  # how many consecutive responses were not valid for their requests

    async def run(self) -> None:
        """Make the requests; when this returns or raises, no thread uses their memory any more."""
        if not self._left:
            return
        self._start(self._slow.watch())
        self._start(self._tick())
        try:
            await self._done
        finally:
            self._queue.clear()
            for task in self._tasks:
                task.cancel()
            await finish_despite_cancel(self._transfer.give_up_and_wait(self._scope.close()))
            await finish_despite_cancel(_ended(self._tasks))
            self._tasks.clear()  # they refer to these requests, and so to their memory

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        task.add_done_callback(self._fail)
        self._tasks.append(task)

    def _start_takers(self) -> None:
        """Start as many tasks as may have requests in flight; a thread ends its turn early if more wait."""
        while self._takers < min(self._most, self._transfer.slots.limit):
            self._start(self._take_turns(self._takers))
            self._takers += 1

    def _fail(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and not self._done.done() and (error := task.exception()) is not None:
            self._done.set_exception(error)

    async def _take_turns(self, number: int) -> None:
        while self._queue:
            async with self._transfer.turn():
                turn = _Turn()
                begin = functools.partial(self._begin, number, turn)
                failed, seconds = await asyncio.wrap_future(self._scope.begin(turn, begin))
            self._report_ended()
            if failed is not None:
                failure = failed.body.failure if failed.body is not None else None
                if failure is not None and not isinstance(failure, EndpointError):
                    raise failure  # of this machine, such as a full disk: repeating the request would not help
                await asyncio.sleep(seconds)
                failed.forget_failures()
                await self._failed(failed)
                self._close()
                await self._forgive()

    def _begin(self, number: int, turn: _Turn) -> Future[tuple[R | None, float]]:
        if self._loops and self._transfer.width > MIN_REQUESTS:
            with suppress(OSError):  # too many open files for one more loop
                return self._loops[number % len(self._loops)].run(self._work(turn, shares_thread=True))
        return self._transfer.in_thread(run_alone, self._work(turn))

    async def _forgive(self) -> None:
        """After botocore has repeated a refused request: use the credentials that it may have renewed."""
        if self._refused and self._refusals < FAILURES:
            self._refusals += 1
            self._refused = not await self._signer().renew(self._template)

    async def _tick(self) -> None:
        began = time.monotonic()
        while True:
            self._start_takers()
            await asyncio.sleep(_TICK_SECONDS)
            self._report_ended()
            if time.monotonic() - began > _RENEWAL_SECONDS:
                began = time.monotonic()
                self._refused |= not await self._signer().renew(self._template)

    def _report_ended(self) -> None:
        while self._ended and not self._done.done():
            self._finished(self._ended.popleft())
            self._close()

    def _close(self) -> None:
        self._left -= 1
        if not self._left and not self._done.done():
            self._done.set_result(None)

    def _work(self, turn: _Turn, *, shares_thread: bool = False) -> Steps[tuple[R | None, float]]:
        """Make requests on a connection until one fails; return it, and how long to wait before repeating it."""
        slots, began = self._transfer.slots, time.monotonic()
        link = self._transfer.exchange.link(self._template.url, shares_thread=shares_thread)
        try:
            while not turn.given_up and not self._scope.closed:
                try:
                    request = self._queue.popleft()
                except IndexError:
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

    def _try(self, turn: _Turn, request: R, link: Link) -> Steps[float | None]:
        """Make a request; return None if it succeeded, or how long to wait before repeating it."""
        turn.request = request
        try:
            while not turn.given_up:
                watch = self._slow.watched(request.body) if isinstance(request, SignedRead) else nullcontext()
                with watch as attempt:
                    try:
                        return (yield from self._attempt(turn, request, link))
                    except Exception:  # botocore repeats the request, and raises the error
                        if attempt is None or not attempt.ended:
                            return 0.0
            return 0.0
        finally:
            turn.request, turn.accepting = None, False

    def _attempt(self, turn: _Turn, request: R, link: Link) -> Steps[float | None]:
        if isinstance(request, SignedWrite):
            yield from self._local.made(request.prepare)
        answer = yield from request.making(self._transfer, self._template, link)
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


async def _ended(tasks: Iterable[asyncio.Future[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
