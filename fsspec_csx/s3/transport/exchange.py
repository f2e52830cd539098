"""Exchange: makes one request in a thread; the body moves between a socket and memory without a copy."""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Iterator
from typing import Any

from aiobotocore.awsrequest import AioAWSResponse
from botocore.exceptions import ConnectionClosedError, EndpointConnectionError, ReadTimeoutError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies
from urllib3.exceptions import ClosedPoolError, HTTPError

from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.concurrency import RequestSlots
from fsspec_csx.s3.transport.failures import UnusualResponseError
from fsspec_csx.s3.transport.link import Link
from fsspec_csx.s3.transport.request_body import LARGEST_PIECE, PIECE, RequestBody
from fsspec_csx.s3.transport.signature import SignedRequest
from fsspec_csx.s3.transport.socket_loop import Steps, run_alone
from fsspec_csx.s3.transport.sockets import (
    PlainPool,
    abort_connection,
    read_body,
    recv_into,
    socket_options,
    translate_errors,
)
from fsspec_csx.s3.transport.tls import TLSPool

_UNUSUAL = 3

# The headers to keep of a response with object data; parsing all of them takes long.
_NEEDED = ("Content-Length", "Content-Range", "ETag", "x-amz-request-id", "x-amz-version-id")


class Exchange:
    """Makes requests over the connections of one client.

    Args:
        client: of aiobotocore; its endpoint, proxies, certificates and timeouts are used.
        verify: True, False, or the path of a certificate bundle; see botocore.
        in_flight: the most requests at a time.
        slots: records the bytes moved and the response times.
        former: of the client that this one replaces; its connections are reused if the settings are equal.

    Attributes:
        limit: seconds to wait for a connection, or None.
        unusual: how many responses S3 would not usually give; after some, ``link`` returns None.
    """

    def __init__(
        self, client: Any, verify: bool | str, in_flight: int, slots: RequestSlots, former: Exchange | None = None
    ) -> None:
        config, url = client.meta.config, client.meta.endpoint_url
        self._plain = url.startswith("http:")
        self.limit = config.read_timeout
        self._slots = slots
        self.unusual = 0
        self._latest: tuple[str, Any] = "", None  # the beginning of the last URL, and its pool
        self._settings: dict[str, Any] = {
            "verify": verify,
            "proxies": get_environ_proxies(url) if config.proxies is None else config.proxies,
            "timeout": (config.connect_timeout, None if self._plain else config.read_timeout),
            "max_pool_connections": in_flight,
            "socket_options": socket_options(config.read_timeout if self._plain else None),
            "client_cert": config.client_cert,
            "proxies_config": config.proxies_config,
        }
        if former is not None and self.is_like(former):
            self.session: URLLib3Session = former.session
        else:
            self.session = URLLib3Session(**self._settings)
            compat.use_pools(self.session, http=PlainPool, https=TLSPool)

    def is_like(self, other: Exchange) -> bool:
        """Whether both have the same settings of connections."""
        return self._settings == other._settings

    def get(self, request: Any, wanted: RangeRequest) -> AioAWSResponse:
        """Request a range and fill it; the returned response has no body if the range was filled."""
        began, body = time.monotonic(), b""
        wanted.moved = self._slots.moved
        with self._noting_stalls():
            answer = self._send(request)
            self._slots.answered(time.monotonic() - began, answer.status_code)
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

    def link(self, url: str, *, shares_thread: bool = False) -> Link | None:
        """Return a connection for requests from templates; None if they must use ``get`` and ``put``."""
        if self.unusual >= _UNUSUAL:
            return None
        (origin, pool), place = self._latest, "/".join(url.split("/", 3)[:3])
        if origin != place:
            pool = compat.pool_to(self.session, url)
            self._latest = place, pool
        try:
            return None if pool is None else Link(pool, self._slots, shares_thread=shares_thread)
        except ClosedPoolError:  # urllib3 keeps the pools of few hosts, and has closed this one
            self._latest = "", None
            return None

    def put_signed(self, request: SignedRequest, body: RequestBody) -> AioAWSResponse:
        """Make a request with a body that a template has signed, on any connection."""
        link = self.link(request.url)
        if link is None:
            return self.put(request, body)
        try:
            return run_alone(self.putting(link, request, body))
        finally:
            link.give_back()

    def putting(self, link: Link, request: SignedRequest, body: RequestBody) -> Steps[AioAWSResponse]:
        """Make a request with a body that a template has signed, on a connection."""
        try:
            head, data = yield from link.putting(request, body)
        except (OSError, HTTPError) as error:  # raise botocore's form of it
            self.unusual += isinstance(error, UnusualResponseError)
            if body.failure is not None:
                raise body.failure from error
            if not link.began:  # the server cannot have applied the request
                raise EndpointConnectionError(endpoint_url=request.url, error=error) from error
            if isinstance(error, (TimeoutError, BlockingIOError)):
                raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error
        headers: Any = head.headers
        if head.status_code < 300 and not data:
            headers = {name: headers.get(name) for name in _NEEDED if name.lower() in headers}
        return AioAWSResponse(request.url, head.status_code, headers, _Body(data))

    def put(self, request: Any, body: RequestBody) -> AioAWSResponse:
        """Make a request with a body."""
        outgoing, sent = copy.copy(request), [time.monotonic()]
        outgoing.body = self._counted(body, sent)
        outgoing.stream_output = True
        with self._noting_stalls():
            try:
                answer = self._send(outgoing)
            except Exception as error:
                if body.failure is not None:  # the connection is not at fault, so a retry would not help
                    raise body.failure from error
                raise
            self._slots.answered(time.monotonic() - sent[-1], answer.status_code)
            with translate_errors(answer, request):
                return AioAWSResponse(request.url, answer.status_code, answer.headers, _Body(read_body(answer)))

    def _counted(self, body: RequestBody, sent: list[float]) -> Iterator[memoryview]:
        """Yield the pieces of a body; add the time before each to ``sent``, as the answer may come after any."""
        for piece in body.pieces(PIECE, LARGEST_PIECE):
            sent.append(time.monotonic())
            yield piece
            self._slots.moved(len(piece))

    def _send(self, request: Any) -> Any:
        """Send a request, and wait for the head of its response."""
        began = time.monotonic()
        try:
            return self.session.send(request)
        except ConnectionClosedError as error:
            # A timeout of the system looks like the end of the connection.
            if not self._plain or self.limit is None or time.monotonic() - began < self.limit:
                raise
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error

    @contextlib.contextmanager
    def _noting_stalls(self) -> Iterator[None]:
        try:
            yield
        except ReadTimeoutError:
            self._slots.throttled()
            raise


class _Body:
    """A response's body for botocore: empty if the bytes went elsewhere, or that of an error."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    async def read(self, amount: int | None = None) -> bytes:
        data, self._data = self._data, b""
        return data

    def close(self) -> None:
        pass
