"""Requests go only to the host that they are addressed to.

If S3 redirects, botocore repeats the request in the region that the response names, and follows no other redirect. But
aiohttp would send the request, with its tokens, keys and body, to any host that a response names. This turns that off.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from aiohttp import ClientResponseError, RequestInfo
from botocore import exceptions as boto
from botocore.utils import get_environ_proxies
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from fsspec_csx.errors import EndpointError, UntrustedCertificateError
from fsspec_csx.private_names import release
from fsspec_csx.redaction import without_user
from fsspec_csx.s3.transport import bounded_body, compat
from fsspec_csx.s3.transport.failures import InvalidResponseError, RedirectedError

_WITH_USER = re.compile(r"((?:[a-z][a-z0-9+.-]*:)?//)?[^/?#]*@[^/?#@]*([/?#][^@]*)?", re.IGNORECASE)
_REDIRECTS = (300, 301, 302, 303, 307, 308)


class BoundedHTTPSession(AIOHTTPSession):  # type: ignore[misc]
    """The connections of a client; they follow no redirects, and limit the size and the time of each body.

    Requests by http have separate connections, which do not load certificates: that takes 30 ms. A proxy may use
    TLS even for them.
    """

    def __init__(self, verify: bool | str = True, proxies: Any = None, **options: Any) -> None:
        if verify == "":  # old releases of botocore would then verify nothing
            msg = "The name of the bundle of certificates is empty."
            raise UntrustedCertificateError(msg, "Unset AWS_CA_BUNDLE, or name a file of certificates.")
        for url in filter(None, (proxies or {}).values()):
            check_proxy(url)
        # aiohttp would keep an address for ten seconds, which is longer than the retries after the server has moved.
        options["connector_args"] = {"ttl_dns_cache": 1, **(options.get("connector_args") or {})}
        super().__init__(verify=verify, proxies=proxies, **options)
        self._plain: AIOHTTPSession | None = None
        if verify and not proxies:
            self._plain = BoundedHTTPSession(verify=False, **{**options, "client_cert": None})

    async def __aenter__(self) -> BoundedHTTPSession:
        await super().__aenter__()
        if self._plain is not None:
            await self._plain.__aenter__()
        return self

    async def __aexit__(self, *raised: Any) -> None:
        try:
            if self._plain is not None:
                await self._plain.__aexit__(*raised)
        finally:
            await super().__aexit__(*raised)

    async def send(self, request: Any) -> Any:
        """Send a request; InvalidResponseError if the body of the response is too long or does not end."""
        if self._plain is not None and request.url.startswith("http:"):
            return await self._plain.send(request)
        try:
            return await bounded_body.guarded(super().send, request)
        except boto.HTTPClientError as error:
            if isinstance(cause := error.kwargs.get("error"), InvalidResponseError):
                raise cause from None
            raise

    async def _get_session(self, proxy_url: Any) -> Any:
        return _Guard(await super()._get_session(proxy_url))

    def _get_ssl_context(self) -> Any:
        return _checking_names(super()._get_ssl_context())

    def _setup_proxy_ssl_context(self, proxy_url: Any) -> Any:
        # Old releases of aiobotocore return None, and then verify no certificate through a proxy.
        return super()._setup_proxy_ssl_context(proxy_url) or self._get_ssl_context()


def check_proxy(url: str) -> None:
    """Raise EndpointError if the URL of a proxy has an invalid user or password: parsers' errors show a part of it."""
    if "@" in url and not _WITH_USER.fullmatch(url):
        reason = "The user's name or the password in the URL of a proxy has one of the characters / ? #."
        raise EndpointError(reason, "Write %2F for /, %3F for ?, and %23 for #.")


def _checking_names(context: Any) -> Any:
    """Let a context of TLS check the name of the host, which it does not in old releases of aiobotocore."""
    context.check_hostname = True
    return context


class _Guard:
    """Wraps an aiohttp session: limits each response, and follows no redirects."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **kwargs: Any) -> Any:
        try:
            return await bounded_body.received(method, self._session.request(method, **kwargs, allow_redirects=False))
        except ClientResponseError as error:  # it shows the URL of a proxy, with its password
            url = URL(without_user(str(error.request_info.real_url)))
            error.request_info = RequestInfo(url, method, CIMultiDictProxy(CIMultiDict()), url)
            error.args = (error.request_info, error.history)
            raise


class NoRedirectSession(AioSession):  # type: ignore[misc]
    """A session whose clients, and whose requests for credentials, follow no redirects."""

    def create_client(self, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        return super().create_client(*args, config=_guarded_config(config), **kwargs)

    def _get_internal_component(self, name: str) -> Any:
        found = super()._get_internal_component(name)
        if name == "smart_defaults_factory":
            _guard_fetcher(compat.region_fetcher(found))
        return found


def _guarded_config(config: Any) -> Any:
    config = AioConfig() if config is None else config
    if getattr(config, "http_session_cls", AIOHTTPSession) is AIOHTTPSession:
        config.http_session_cls = BoundedHTTPSession
    return config


def check_guarded(client: Any) -> None:
    """Raise ImportError if a client uses aiohttp's connections without the guard."""
    connections = compat.http_session(client)
    if isinstance(connections, AIOHTTPSession) and not isinstance(connections, BoundedHTTPSession):
        msg = f"{release('aiobotocore')} makes clients that would follow redirects. Install another release."
        raise ImportError(msg)


def forbid_redirects(session: Any) -> None:
    """Stop a session's requests for credentials from following redirects, also to containers and instances."""
    if not isinstance(session, NoRedirectSession) and "create_client" not in vars(session):
        make = session.create_client
        session.create_client = lambda *args, config=None, **rest: make(*args, config=_guarded_config(config), **rest)
    for fetcher in compat.credential_fetchers(session):
        _guard_fetcher(fetcher)


def _guard_fetcher(fetcher: Any) -> None:
    """Stop a metadata fetcher from following redirects; it raises RedirectedError for them."""
    connections = compat.connections_of(fetcher)
    if "send" in vars(connections):
        return
    connect, send, make_context = connections._get_session, connections.send, connections._get_ssl_context

    async def get_session(proxy_url: Any) -> Any:
        return _Guard(await connect(proxy_url))

    async def send_guarded(request: Any) -> Any:
        for url in get_environ_proxies(request.url).values():
            check_proxy(url)
        response = await bounded_body.guarded(send, request)
        if response.status_code in _REDIRECTS:
            raise RedirectedError(_host(response))
        return response

    connections._get_session, connections.send = get_session, send_guarded
    connections._get_ssl_context = lambda: _checking_names(make_context())


def refuse_redirect(response: Any = None, **_: Any) -> None:
    """Raise RedirectedError for a redirect that names no region; botocore would search for one endlessly."""
    if response is None or response[0].status_code not in _REDIRECTS:
        return
    answer, parsed = response
    has_region = "x-amz-bucket-region" in answer.headers or "Region" in parsed.get("Error", {})
    if not has_region or answer.status_code == 300:  # botocore raises no error for status 300
        raise RedirectedError(_host(answer))


def _host(response: Any) -> str:
    """Return the host that a response redirects to, without user, password, path and query."""
    location = urlsplit(response.headers.get("Location", ""))
    host = location.netloc.rpartition("@")[2]
    return f"{location.scheme}://{host}" if host else "another address"
