"""Exchange: makes one request in a thread; the body moves between a socket and memory without a copy."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, urlsplit

from aiobotocore.awsrequest import AioAWSResponse
from botocore import exceptions as boto
from botocore.utils import get_environ_proxies
from urllib3.connection import CertificateError  # type: ignore[attr-defined]
from urllib3.exceptions import ClosedPoolError, ConnectTimeoutError, HTTPError, SSLError

from fsspec_csx.redaction import without_user
from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.concurrency import RequestSlots
from fsspec_csx.s3.transport.link import Link
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.response_head import ResponseHead
from fsspec_csx.s3.transport.signature import SignedRequest, host_of
from fsspec_csx.s3.transport.socket_loop import Steps, run_alone
from fsspec_csx.s3.transport.tls import TLSPool

_RESERVED = "!$%&'()*+,/:;=?@[]~"  # what a URL may have besides letters, digits and -._

_FRAMING = ("content-length", "transfer-encoding")  # headers that say where a body ends

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
        shares_threads: whether a thread may serve several connections; not with TLS within the TLS of a proxy.
    """

    def __init__(
        self, client: Any, verify: bool | str, in_flight: int, slots: RequestSlots, former: Exchange | None = None
    ) -> None:
        config, url = client.meta.config, client.meta.endpoint_url
        proxies = get_environ_proxies(url) if config.proxies is None else config.proxies
        scheme = urlsplit(url).scheme  # in lower case
        secure = scheme == "https", urlsplit(proxies.get(scheme) or "").scheme == "https"
        plain, self.shares_threads = not any(secure), not all(secure)
        self.limit = config.read_timeout
        self._slots = slots
        self._latest: tuple[str, Any, bool] = "", None, False  # the beginning of the last URL, its pool, if forwarded
        self._settings: dict[str, Any] = {
            "verify": verify,
            "proxies": proxies,
            "timeout": (config.connect_timeout, None if plain else config.read_timeout),
            "max_pool_connections": in_flight,
            "socket_options": socket_options(config.read_timeout if plain else None),
            "client_cert": config.client_cert,
            "proxies_config": config.proxies_config,
        }
        if former is not None and self.is_like(former):
            self.session: compat.BlockingSession = former.session
        else:
            self.session = compat.BlockingSession(**self._settings)
            compat.use_pools(self.session, https=TLSPool)

    def is_like(self, other: Exchange) -> bool:
        """Whether both have the same settings of connections."""
        return self._settings == other._settings

    def close_idle(self) -> None:
        """Close the connections that no request uses."""
        self._latest = "", None, False
        self.session.close()

    def link(self, url: str, *, shares_thread: bool = False) -> Link:
        """Return a connection for requests to a host.

        Raises:
            EndpointConnectionError: if there can be none.
        """
        place = "/".join(url.split("/", 3)[:3])
        origin, pool, forwarded = self._latest  # other threads may replace it
        try:
            if origin == place:
                with contextlib.suppress(ClosedPoolError):  # urllib3 keeps the pools of few hosts
                    return Link(pool, self._slots, shares_thread=shares_thread, forwarded=forwarded)
            pool = compat.pool_to(self.session, url)
            forwarded = compat.is_forwarded(pool, url)
            self._latest = place, pool, forwarded
            return Link(pool, self._slots, shares_thread=shares_thread, forwarded=forwarded)
        except HTTPError as error:
            raise boto.EndpointConnectionError(endpoint_url=url, error=error) from error

    def get(self, request: Any, wanted: RangeRequest) -> AioAWSResponse:
        """Request a range and fill it; the returned response has no body if the range was filled."""
        head, data = self._made(request, wanted, lambda link: link.getting(_signed(request), wanted))
        headers: Any = head.headers
        if head.status_code < 300:
            headers = {name: headers.get(name) for name in _NEEDED if name.lower() in headers}
        return AioAWSResponse(request.url, head.status_code, headers, _Body(data))

    def put(self, request: Any, body: RequestBody) -> AioAWSResponse:
        """Make a request with a body."""
        return answer(request, *self._made(request, body, lambda link: link.putting(_signed(request, body), body)))

    def _made(
        self,
        request: Any,
        body: RequestBody | RangeRequest,
        steps: Callable[[Link], Steps[tuple[ResponseHead, bytes]]],
    ) -> tuple[ResponseHead, bytes]:
        link = self.link(request.url)
        try:
            with botocore_errors(link, request, body):
                return run_alone(steps(link))
        finally:
            link.give_back()


def answer(request: Any, head: ResponseHead, data: bytes) -> AioAWSResponse:
    """Return a response in the form that botocore reads."""
    return AioAWSResponse(request.url, head.status_code, head.headers, _Body(data))


def _signed(request: Any, body: RequestBody | None = None) -> SignedRequest:
    """Return a request of botocore in the form that a Link sends."""
    parts = urlsplit(request.url)
    target = quote(f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}", safe=_RESERVED)
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _FRAMING}
    if body is not None:
        headers["Content-Length"] = str(len(body))
    return SignedRequest(request.method, request.url, target, host_of(parts), headers)


@contextlib.contextmanager
def botocore_errors(link: Link, request: Any, body: RequestBody | RangeRequest) -> Iterator[None]:
    """Raise botocore's exceptions for errors of a connection in a block; those of this machine stay as they are."""
    try:
        yield
    except (OSError, HTTPError, HTTPException, CertificateError) as error:
        failure = body.failure or _botocore_error(link, request, error)
        if failure is error:
            raise
        raise failure from error


def _botocore_error(link: Link, request: Any, error: Exception) -> Any:
    url, proxy = request.url, link.pool.proxy
    late = isinstance(error, (TimeoutError, BlockingIOError)) or type(error) is ConnectTimeoutError
    if link.began:
        if late and not link.answered:
            return boto.ReadTimeoutError(endpoint_url=url, error=error)
        return boto.ConnectionClosedError(endpoint_url=url, request=request, error=error)
    insecure = isinstance(error, (ssl.SSLError, SSLError, CertificateError))
    if proxy is not None and not (insecure and link.reached_proxy):
        return boto.ProxyConnectionError(proxy_url=without_user(proxy.url), error=error)
    kind = boto.SSLError if insecure else boto.ConnectTimeoutError if late else boto.EndpointConnectionError
    return kind(endpoint_url=url, error=error)


def socket_options(seconds: float | None) -> list[tuple[int, int, Any]]:
    """Return socket options with a timeout of the system, which makes few and long calls possible.

    With TLS, Python keeps the timeout, as OpenSSL would restart the call.
    """
    options: list[tuple[int, int, Any]] = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    if seconds is not None:
        whole, fraction = divmod(seconds, 1)
        limit = struct.pack("@ll", int(whole), int(fraction * 1e6))
        options += [(socket.SOL_SOCKET, name, limit) for name in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO)]
    return options


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
