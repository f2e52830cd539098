"""Bodies of bulk requests, moved between S3 and memory by threads in parallel and without a copy.

botocore signs each request, retries it and reads its errors; only its body is moved here, by a handler of the event
``before-send``, which may respond in place of botocore's own connection:
https://docs.aws.amazon.com/boto3/latest/guide/events.html
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from aiobotocore.awsrequest import AioAWSResponse
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.call_scope import Body, scope, uncancelled
from fsspec_csx.s3.transport.concurrency import LEAST, slots_for
from fsspec_csx.s3.transport.range_planning import size_for
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_context import current, using
from fsspec_csx.s3.transport.request_template import RequestTemplate
from fsspec_csx.s3.transport.signed_reads import SignedRead, SignedReads
from fsspec_csx.s3.transport.sockets import (
    PlainPool,
    abort_connection,
    read_body,
    recv_into,
    socket_options,
    translate_errors,
)
from fsspec_csx.s3.transport.threads import Threads
from fsspec_csx.s3.transport.tls import TLSPool

T = TypeVar("T")

PART = 8 * 2**20
"""Bytes of a request of a large read, and of the first parts of an upload."""

# Memory of our own, for bytes on their way: with a near store, and the most with a far one.
_BUFFERED_NEAR, _BUFFERED_FAR, _AHEAD_FAR = 48 * 2**20, 216 * 2**20, 192 * 2**20

# Of so many ranges, all but the first are requested in the quick way.
_MANY = 3

# Bytes between two checks whether an upload was given up; plain ones are sent by one system call.
_PIECE_PLAIN, _PIECE_TLS = 4 * 2**20, 2**20

# How long to wait for a thread that uses no memory of the caller.
_STUCK_SECONDS = 1.0

# Headers of a response with a part: to parse all of them for each part takes long.
_NEEDED = ("Content-Length", "Content-Range", "ETag", "x-amz-request-id", "x-amz-version-id")


class Transfer:
    """The threads and connections that move the bodies of the bulk requests of one client.

    Args:
        client: the aiobotocore client whose GetObject, PutObject and UploadPart requests it serves.
        verify: True, False, or the path of a certificate bundle; see botocore.
        in_flight: how many requests at a time.
        former: of the client that this one replaces; its threads and connections are kept.

    Attributes:
        in_flight: the same.
        checksums: whether the server takes checksums of uploads; None before the first upload has settled it.
    """

    def __init__(self, client: Any, verify: bool | str, in_flight: int, former: Transfer | None = None) -> None:
        config = client.meta.config
        self._plain = client.meta.endpoint_url.startswith("http:")
        self._limit = config.read_timeout
        self._settings: dict[str, Any] = {
            "verify": verify,
            "proxies": get_environ_proxies(client.meta.endpoint_url) if config.proxies is None else config.proxies,
            "timeout": (config.connect_timeout, None if self._plain else config.read_timeout),
            "max_pool_connections": in_flight,
            "socket_options": socket_options(config.read_timeout if self._plain else None),
            "client_cert": config.client_cert,
            "proxies_config": config.proxies_config,
        }
        self.in_flight = in_flight
        self.checksums: bool | None = None
        self._loop = asyncio.get_running_loop()
        if former is not None and (former._loop, former._settings) == (self._loop, self._settings):
            self._session: URLLib3Session = former._session
            self._threads: Threads = former._threads
            self._own_slots: asyncio.Semaphore = former._own_slots
            self.checksums = former.checksums
        else:
            self._session = URLLib3Session(**self._settings)
            compat.use_pools(self._session, http=PlainPool, https=TLSPool)
            self._threads = Threads(in_flight, kept=LEAST)
            self._own_slots = asyncio.Semaphore(in_flight)
        self.slots = slots_for(client.meta.endpoint_url, in_flight)
        self._for_payloads = _for_payloads(config)
        self._credentials = compat.credentials_of(client)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the turn of a request; it lasts for the block."""
        async with self._own_slots, self.slots:
            try:
                yield
            finally:
                self._threads.rest()

    def in_thread(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Run a function in one of the threads."""
        return self._threads.submit(function, *args)

    async def fetch(
        self,
        get: Callable[..., Awaitable[Any]],
        ranges: Sequence[RangeRequest],
        advance: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Fill the memories of ranges of an object, several at a time.

        Args:
            get: makes a GetObject request, with the parameter ``Range`` or without, and returns botocore's response.
            ranges: whose bytes the object must have.
            advance: is called on the event loop with the length of each range that has arrived.

        Raises:
            Exception: what ``get`` raised for the first range that failed; the others are given up.
        """

        scope().join()

        async def fetch_one(wanted: RangeRequest) -> None:
            async with self.turn():
                span = wanted.header()
                with using(wanted=wanted):
                    answer = await get(**({"Range": span} if span else {}))
                if not wanted.complete:  # a client of another region, which has other handlers, was used
                    wanted.accept(await answer["Body"].read())
            advance(wanted.length)

        tasks: list[asyncio.Future[None]] = []
        try:
            rest = ranges
            if len(ranges) >= _MANY:
                request: asyncio.Future[Any] = self._loop.create_future()
                with using(sent=functools.partial(_resolve, request)):
                    tasks.append(asyncio.ensure_future(fetch_one(ranges[0])))
                tasks[0].add_done_callback(lambda _: _resolve(request, None))
                if (template := await self.template(await request)) is not None:
                    reads = SignedReads(
                        self,
                        template,
                        [SignedRead(None, each) for each in ranges[1:]],
                        lambda read: advance(read.wanted.length),
                        lambda read: fetch_one(read.wanted),
                    )
                    tasks.append(asyncio.ensure_future(reads.run()))
                    rest = ranges[:1]
                rest = rest[1:]
            tasks += [asyncio.ensure_future(fetch_one(each)) for each in rest]
            await asyncio.gather(*tasks)
            for each in ranges:
                if each.etag != ranges[0].etag:  # botocore's requests raise what is wrong
                    each.restart()
                    await fetch_one(each)
        except BaseException:
            # Nothing may write to the memory any more when this returns: it is the caller's again.
            await uncancelled(self._given_up(tasks, ranges))
            raise

    @property
    def width(self) -> int:
        """How many requests may be in flight now; more than ``LEAST`` with a far store alone."""
        return min(self.in_flight, self.slots.limit)

    def request_size(self, size: int) -> int:
        """Bytes of each request for a read of so many."""
        if self.width <= LEAST:
            return size_for(size, min(LEAST, self.in_flight))
        return size_for(size, min(self.in_flight, self.slots.free), far=True)  # less divided beside other reads

    @property
    def buffered_bytes(self) -> int:
        """How many bytes that must be copied may be on their way: enough for the requests in flight of a far store."""
        return _BUFFERED_NEAR if self.width <= LEAST else min(max(_BUFFERED_NEAR, self.width * PART), _BUFFERED_FAR)

    @property
    def ahead_bytes(self) -> int:
        """How many bytes to fetch before a file's reader asks for them; 0 where the next read is as fast without."""
        return 0 if self.width <= LEAST else min(self.width * PART, _AHEAD_FAR)

    async def template(self, request: Any, key: str | None = None) -> RequestTemplate | None:
        """A template of requests like one that was sent; None if only botocore can make them.

        Args:
            key: see ``RequestTemplate``.
        """
        if request is None or self._credentials is None:
            return None
        try:
            return RequestTemplate(request, await self._credentials.get_frozen_credentials(), key)
        except (AttributeError, ValueError):
            return None

    async def _given_up(self, tasks: Sequence[asyncio.Future[None]], ranges: Sequence[RangeRequest]) -> None:
        for task in tasks:
            task.cancel()
        for each in ranges:
            each.give_up()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.ended(ranges)

    async def send(self, put: Callable[[], Awaitable[T]], payload: RequestBody) -> T:
        """Send a body when it is its turn.

        Args:
            put: makes its request.
            payload: no thread uses it when this returns.
        """
        scope().join()
        try:
            async with self.turn():
                thread = scope().begin(payload, functools.partial(self._threads.submit, payload.prepare))
                await asyncio.wrap_future(thread)
                return await put()
        except BaseException:
            await uncancelled(self.ended([payload]))
            raise

    @staticmethod
    async def ended(bodies: Sequence[Body]) -> None:
        """Give these up, and wait until no thread uses memory of the caller; for a while until none uses its own."""
        await Transfer.released(bodies)
        await _threads_ended([each for each in bodies if each.thread and not each.thread.done()], _STUCK_SECONDS)

    @staticmethod
    async def released(bodies: Sequence[Body]) -> None:
        """Give these up, and wait until no thread uses memory of the caller."""
        for body in bodies:
            body.give_up()
        running = [each for each in bodies if each.thread and not each.thread.done()]
        await _threads_ended([each for each in running if each.harmful], None)

    def before_building(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        """Let a request body go unhashed; a handler of ``before-parameter-build``."""
        if isinstance(params.get("Body"), RequestBody):
            context["client_config"] = self._for_payloads

    def before_signing(self, request: Any, **_: Any) -> None:
        """Ask for the bytes that are missing; a handler of ``request-created``."""
        if isinstance(request.data, RequestBody):
            del request.headers["Expect"]  # it would cost a round trip; the body can be sent again
        elif (wanted := current().wanted) is not None and (span := wanted.header()):
            del request.headers["Range"]
            request.headers["Range"] = span  # resumes at the last byte received
            if wanted.filled and wanted.etag:
                del request.headers["If-Match"]
                request.headers["If-Match"] = wanted.etag

    @staticmethod
    def note_sent(**_: Any) -> None:
        """Note when a request without a body is sent; a handler of ``before-send``."""
        if (outcome := current().outcome) is not None:
            outcome.sent = time.monotonic()

    def note_answered(self, response: Any = None, **_: Any) -> None:
        """Note how long its answer took; a handler of ``needs-retry``."""
        if response is not None and (outcome := current().outcome) is not None and outcome.sent:
            self.slots.answered(time.monotonic() - outcome.sent)

    async def answer(self, request: Any, **_: Any) -> AioAWSResponse | None:
        """Move the body by a thread; a handler of ``before-send``, None to leave it to botocore."""
        body = request.body if isinstance(request.body, RequestBody) else current().wanted
        if body is None:
            return None
        exchange: Callable[[Any, Any], AioAWSResponse] = self._put if isinstance(body, RequestBody) else self.get
        thread = scope().begin(body, functools.partial(self._threads.submit, exchange, request, body))
        return await asyncio.wrap_future(thread)

    def _send(self, request: Any) -> Any:
        """Send a request, and wait for the head of its response."""
        began = time.monotonic()
        try:
            return self._session.send(request)
        except ConnectionClosedError as error:
            # A time limit that the system keeps looks like the end of the connection.
            if not self._plain or self._limit is None or time.monotonic() - began < self._limit:
                raise
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error

    @contextlib.contextmanager
    def _noting_stalls(self) -> Iterator[None]:
        try:
            yield
        except ReadTimeoutError:
            self.slots.throttled()
            raise

    def _note_answer(self, status: int, began: float) -> None:
        self.slots.answered(time.monotonic() - began)
        if status in (429, 503):
            self.slots.throttled()

    def _put(self, request: Any, payload: RequestBody) -> AioAWSResponse:
        outgoing, sent = copy.copy(request), [time.monotonic()]
        outgoing.body = self._counted(payload, sent)
        outgoing.stream_output = True
        with self._noting_stalls():
            try:
                answer = self._send(outgoing)
            except Exception as error:
                if payload.failure is not None:  # not the connection's, so that there is no use in another
                    raise payload.failure from error
                raise
            self._note_answer(answer.status_code, sent[-1])
            with translate_errors(answer, request):
                return AioAWSResponse(request.url, answer.status_code, answer.headers, _Body(read_body(answer)))

    def _counted(self, payload: RequestBody, sent: list[float]) -> Iterator[memoryview]:
        """The pieces of a body; the time before each is added to ``sent``: after it, the answer may have come."""
        for piece in payload.pieces(_PIECE_PLAIN if self._plain else _PIECE_TLS):
            sent.append(time.monotonic())
            yield piece
            self.slots.moved(len(piece))

    def get(self, request: Any, wanted: RangeRequest) -> AioAWSResponse:
        """In a thread: make a request for a range, and fill it; the response, whose body is empty if it was filled."""
        began, body = time.monotonic(), b""
        wanted.moved = self.slots.moved
        with self._noting_stalls():
            answer = self._send(request)
            self._note_answer(answer.status_code, began)
            try:
                with translate_errors(answer, request, wanted):
                    if 200 <= answer.status_code < 300:
                        wanted.interrupt = functools.partial(abort_connection, answer)
                        recv_into(wanted, answer)
                        if wanted.cut_off:
                            answer.raw.close()
                        headers = {name: answer.headers[name] for name in _NEEDED if name in answer.headers}
                    else:
                        body, headers = read_body(answer), answer.headers
            finally:
                wanted.interrupt = None
        return AioAWSResponse(request.url, answer.status_code, headers, _Body(body))


async def _threads_ended(bodies: Sequence[Body], seconds: float | None) -> None:
    threads = [asyncio.wrap_future(each.thread) for each in bodies if each.thread]
    if threads:
        await asyncio.wait([asyncio.gather(*threads, return_exceptions=True)], timeout=seconds)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _for_payloads(config: Any) -> Any:
    """The client's configuration, but bodies are not hashed for the signature unless the user set that.

    A checksum in a signed header covers them, and a SHA-256 takes longer than the sending. Nor does botocore add a
    checksum of its own, which the server may have refused.
    """
    changed = copy.copy(config)
    changed.request_checksum_calculation = "when_required"
    options = dict(config.s3 or {})
    if options.get("payload_signing_enabled") is None:
        options["payload_signing_enabled"] = False
    changed.s3 = options
    return changed


class _Body:
    """The body for botocore of a response whose bytes went elsewhere, or that is an error."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, amount: int | None = None) -> bytes:
        data, self._data = self._data, b""
        return data

    def close(self) -> None:
        pass
