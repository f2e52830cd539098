"""Transfer: the threads and connections of a client's parallel requests, and the turns that limit them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from aiobotocore.awsrequest import AioAWSResponse

from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.call_scope import Body, finish_despite_cancel, scope
from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS, slots_for
from fsspec_csx.s3.transport.exchange import Exchange
from fsspec_csx.s3.transport.learned_template import WORTHWHILE, LearnedTemplate, Signer
from fsspec_csx.s3.transport.memory import BufferPool
from fsspec_csx.s3.transport.queued_requests import QueuedRead
from fsspec_csx.s3.transport.range_planning import size_for
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_context import using
from fsspec_csx.s3.transport.request_queue import RequestQueue
from fsspec_csx.s3.transport.threads import Threads

T = TypeVar("T")

PART = 8 * 2**20
"""Bytes of a request of a large read, and of a part of a large upload of known size."""

# The most buffered bytes in flight, of all files that are written: with a near store, and with a far one. A file reads
# as many ahead from a far one.
_BUFFERED_NEAR, _BUFFERED_FAR = 40 * 2**20, 240 * 2**20

# How long to wait for a thread that does not use the caller's memory.
_STUCK_SECONDS = 1.0


class Transfer:
    """The threads and connections that move the bodies of one client's requests for object data.

    Args:
        client: the aiobotocore client whose GetObject, PutObject and UploadPart requests it serves.
        verify: True, False, or the path of a certificate bundle; see botocore.
        in_flight: the most requests at a time.
        former: the Transfer of the client that this one replaces; its threads and connections are reused.

    Attributes:
        checksums: whether the server accepts checksums of uploads, by their first request: some accept them in
            put_object and not in create_multipart_upload.
        buffered: how many copied bytes each part in flight has, by the ``id`` of its writer and its number.
        buffers: the buffers for copied bytes of all files that are written.
        slots: the turns of all requests of the process to the same store.
        exchange: makes one request on its connections.
        signer: makes templates of its requests.
        loop: the event loop that it was made on.
    """

    def __init__(self, client: Any, verify: bool | str, in_flight: int, former: Transfer | None = None) -> None:
        self.in_flight = in_flight
        self.checksums: dict[str, bool] = {}
        self.slots = slots_for(client.meta.endpoint_url, in_flight)
        self.exchange: Exchange = Exchange(
            client, verify, in_flight, self.slots, None if former is None else former.exchange
        )
        self.signer = Signer(client)
        self.buffered: dict[tuple[int, int], int] = {}
        self.buffers = BufferPool()
        self.loop = asyncio.get_running_loop()
        if former is not None and former.loop is self.loop and self.exchange.is_like(former.exchange):
            self._threads: Threads = former._threads
            self._own_slots: asyncio.Semaphore = former._own_slots
            self.checksums = former.checksums
        else:
            self._threads = Threads(2 * in_flight, self.exchange.close_idle)
            self._own_slots = asyncio.Semaphore(in_flight)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn to make a request, and hold it for the block."""
        async with self._own_slots, self.slots:
            try:
                yield
            finally:
                self._threads.start_idle_timer()

    def takes_checksums(self, method: str) -> bool | None:
        """Return whether uploads that begin with this request may carry checksums; None if that is not known yet."""
        return self.checksums.get(method, False if False in self.checksums.values() else None)

    def in_thread(self, function: Callable[..., T], *args: Any) -> Future[T]:
        return self._threads.submit(function, *args)

    async def fetch(
        self,
        get: Callable[..., Awaitable[Any]],
        ranges: Sequence[RangeRequest],
        advance: Callable[[int], object] = lambda count: None,
        *,
        alike: LearnedTemplate | None = None,
    ) -> None:
        """Fill the memories of ranges of an object, by parallel requests.

        Args:
            get: makes a GetObject request, with the parameter ``Range`` or without, and returns botocore's response.
            ranges: the ranges to fill; the object must have their bytes.
            advance: called on the event loop with the length of each range that has arrived.
            alike: the template that these requests share with those of other calls.

        Raises:
            Exception: the error of ``get`` for the first range that failed; the other ranges are given up.
        """

        scope().join()
        if not ranges:
            return

        async def fetch_one(wanted: RangeRequest) -> None:
            async with self.turn():
                span = wanted.header()
                with using(wanted=wanted):
                    await get(**({"Range": span} if span else {}))
                assert wanted.complete  # filled by ``BulkHandlers.answer``, which all clients have
            advance(wanted.length)

        if alike is None and len(ranges) >= WORTHWHILE:
            alike = LearnedTemplate()
        reads = [QueuedRead(None, each) for each in ranges]
        try:
            if alike is None and len(ranges) == 1:
                await fetch_one(ranges[0])
            else:
                await RequestQueue(
                    self, alike, reads, lambda read: fetch_one(read.body), lambda read: advance(read.body.length)
                ).run()
            for each in ranges:
                if each.etag != ranges[0].etag:  # repeat it through botocore, which raises the right error
                    each.restart()
                    await fetch_one(each)
        except BaseException:
            # The caller may reuse the memory when this raises, so nothing may write to it any more.
            await finish_despite_cancel(self.give_up_and_wait(ranges))
            raise

    @property
    def width(self) -> int:
        """How many requests may be in flight now; more than ``MIN_REQUESTS`` only with a far store."""
        return min(self.in_flight, self.slots.limit)

    def request_size(self, size: int) -> int:
        """Return the bytes of each request for a read of ``size`` bytes."""
        if self.width <= MIN_REQUESTS:
            return size_for(size, min(MIN_REQUESTS, self.in_flight))
        return size_for(size, min(self.in_flight, self.slots.free), far=True)  # fewer requests if others are in flight

    @property
    def room(self) -> int:
        """How many more copied bytes may be in flight, of all files that are written."""
        return self.buffered_bytes - sum(list(self.buffered.values()))

    @property
    def buffered_bytes(self) -> int:
        """The most copied bytes that may be in flight: with a far store, enough for all its requests."""
        if self.width <= MIN_REQUESTS:
            return _BUFFERED_NEAR
        return min(max(_BUFFERED_NEAR, self.width * PART), _BUFFERED_FAR)

    @property
    def ahead_bytes(self) -> int:
        """How many bytes a file reads ahead; 0 with a near store, where reading ahead is not faster."""
        return 0 if self.width <= MIN_REQUESTS else self.buffered_bytes

    async def send(self, put: Callable[[], Awaitable[T]], payload: RequestBody) -> T:
        """Prepare and send a body by ``put`` when it gets a turn; then no thread uses the body any more."""
        scope().join()
        try:
            async with self.turn():
                return await put()
        except BaseException:
            await finish_despite_cancel(self.give_up_and_wait([payload]))
            raise

    @staticmethod
    async def give_up_and_wait(bodies: Sequence[Body]) -> None:
        """Give up bodies; wait until no thread uses the caller's memory, and up to a second for the other threads."""
        for body in bodies:
            body.give_up()
        await _threads_ended([each for each in bodies if each.uses_caller_memory], None)
        await _threads_ended(bodies, _STUCK_SECONDS)

    async def exchanged(self, request: Any, body: RequestBody | RangeRequest) -> AioAWSResponse:
        """Make a request in the thread of its body."""
        exchange: Callable[[Any, Any], AioAWSResponse] = (
            self.exchange.put if isinstance(body, RequestBody) else self.exchange.get
        )
        return await self._with(body, exchange, request, body)

    async def prepare(self, body: RequestBody) -> None:
        await self._with(body, body.prepare)

    async def _with(self, body: Body, function: Callable[..., T], *args: Any) -> T:
        return await asyncio.wrap_future(scope().begin(body, lambda: self._threads.submit(function, *args)))


async def _threads_ended(bodies: Sequence[Body], seconds: float | None) -> None:
    threads = [asyncio.wrap_future(each.thread) for each in bodies if each.thread and not each.thread.done()]
    if threads:
        await asyncio.wait([asyncio.gather(*threads, return_exceptions=True)], timeout=seconds)
