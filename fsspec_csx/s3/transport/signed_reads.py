"""Many requests for bytes, signed from one template and made by threads, each of which takes the next when it is ready.

What does not succeed at once is left to botocore, which knows what to do about it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.call_scope import Scope, scope, uncancelled
from fsspec_csx.s3.transport.request_template import ReadTemplate
from fsspec_csx.s3.transport.slow_connections import SlowConnections

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.pool import Transfer

logger = logging.getLogger("fsspec_csx")

# After so long a thread lets others have their turn.
_TURN_SECONDS = 0.2
_REFUSED = (400, 401, 403)
_BUSY = (429, 500, 502, 503, 504)
_WAIT, _LONGEST_WAIT = (0.05, 0.3), 60.0  # seconds before a busy store is asked again


@dataclass(eq=False)
class SignedRead:
    """A request to make.

    Args:
        key: of the object; None if the template is of one object.
        wanted: the range.
        accept: called in a thread when the bytes have arrived; whether they are good.
    """

    key: str | None
    wanted: RangeRequest
    accept: Callable[[RangeRequest], bool] = bool


class SignedReads:
    """Makes requests by threads.

    Args:
        transfer: whose threads and connections are used.
        template: makes the requests.
        reads: in the order in which they are begun.
        finished: called on the event loop for each that has succeeded.
        failed: makes the request in another way.
    """

    def __init__(
        self,
        transfer: Transfer,
        template: ReadTemplate,
        reads: Iterable[SignedRead],
        finished: Callable[[SignedRead], object],
        failed: Callable[[SignedRead], Awaitable[object]],
    ) -> None:
        self._transfer, self._template = transfer, template
        self._queue = deque(reads)
        self._finished, self._failed = finished, failed
        self._loop = asyncio.get_running_loop()
        self._scope = Scope(scope())
        self._open = set(self._queue)
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._slow = SlowConnections(lambda: bool(self._queue))
        self._refused = False

    async def run(self) -> None:
        """Make the requests; no thread uses their memory when this returns, or raises."""
        if not self._open:
            return
        count = min(self._transfer.in_flight, len(self._open))
        tasks = [asyncio.ensure_future(self._take_turns()) for _ in range(count)]
        for task in tasks:
            task.add_done_callback(self._fail)
        tasks.append(asyncio.ensure_future(self._slow.watch()))
        try:
            await self._done
        finally:
            self._queue.clear()
            for task in tasks:
                task.cancel()
            await uncancelled(self._transfer.released(self._scope.close()))
            await uncancelled(_ended(tasks))

    def _fail(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and not self._done.done() and (error := task.exception()) is not None:
            self._done.set_exception(error)

    async def _take_turns(self) -> None:
        while self._queue:
            async with self._transfer.turn():
                failed, seconds = await asyncio.wrap_future(self._transfer.in_thread(self._work))
            if failed is not None:
                await asyncio.sleep(seconds)
                failed.wanted.forget_failures()
                await self._failed(failed)
                self._close(failed)

    def _work(self) -> tuple[SignedRead | None, float]:
        """In a thread: make requests up to the first that fails; return it, and how long to wait with it."""
        slots, began = self._transfer.slots, time.monotonic()
        while not self._scope.closed:
            try:
                read = self._queue.popleft()
            except IndexError:
                break
            wait = 0.0 if self._refused else self._try(read)
            if wait is not None:
                return read, wait
            self._loop.call_soon_threadsafe(self._succeed, read)
            if slots.exceeded or (slots.contended and time.monotonic() - began > _TURN_SECONDS):
                break
        return None, 0.0

    def _try(self, read: SignedRead) -> float | None:
        """Make a request; return None if it succeeded, else how long to wait before the next."""
        while True:
            try:
                with self._slow.watched(read.wanted) as attempt:
                    return self._attempt(read, read.wanted)
            except asyncio.CancelledError:
                return 0.0
            except Exception:  # the next request of it, by botocore, raises what is wrong
                if not attempt.ended:
                    return 0.0

    def _attempt(self, read: SignedRead, wanted: RangeRequest) -> float | None:
        done: Future[None] = self._scope.begin(wanted, Future)
        try:
            request = self._template.request(read.key, wanted.header())
            logger.debug("Sending GetObject for %s, %s", request.url, wanted.header() or "all of it")
            answer = self._transfer.exchange.get(request, wanted)
            if answer.status_code in _BUSY:
                after = answer.headers.get("Retry-After", "")
                return min(float(after), _LONGEST_WAIT) if after.isdecimal() else random.uniform(*_WAIT)
            self._refused = self._refused or answer.status_code in _REFUSED
            return None if answer.status_code < 300 and wanted.complete and read.accept(wanted) else 0.0
        finally:
            done.set_result(None)

    def _succeed(self, read: SignedRead) -> None:
        if read in self._open and not self._done.done():
            self._finished(read)
            self._close(read)

    def _close(self, read: SignedRead) -> None:
        self._open.discard(read)
        if not self._open and not self._done.done():
            self._done.set_result(None)


async def _ended(tasks: Iterable[asyncio.Future[None]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
