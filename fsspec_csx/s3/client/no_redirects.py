"""Requests that go to whom they are addressed, and nowhere else.

A redirect is answered as botocore itself does, for S3 by the region that it names, and never by sending the request,
with its tokens, keys and body, to the address that an answer tells; aiohttp would follow that, to any host.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import exceptions as boto

from fsspec_csx.s3.transport.bounded_body import received, streamed
from fsspec_csx.s3.transport.failures import InvalidResponseError, RedirectedError

_REDIRECTS = (300, 301, 302, 303, 307, 308)


class BoundedHTTPSession(AIOHTTPSession):  # type: ignore[misc]
    """The connections of a client, which follow no redirect and take no answer without end."""

    async def send(self, request: Any) -> Any:
        """As of ``AIOHTTPSession``."""
        reset = streamed.set(request.stream_output)
        try:
            return await super().send(request)
        except boto.HTTPClientError as error:
            if isinstance(cause := error.kwargs.get("error"), InvalidResponseError):
                raise cause from None
            raise
        finally:
            streamed.reset(reset)

    async def _get_session(self, proxy_url: Any) -> Any:
        return _Straight(await super()._get_session(proxy_url))


class _Straight:
    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, method: str, **kwargs: Any) -> Any:
        return await received(method, self._session.request(method, **kwargs, allow_redirects=False))


class NoRedirectSession(AioSession):  # type: ignore[misc]
    """A session none of whose clients, those that ask for credentials included, follows a redirect."""

    def create_client(self, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As of ``AioSession``."""
        return super().create_client(*args, config=_straight(config), **kwargs)

    def _get_internal_component(self, name: str) -> Any:
        found = super()._get_internal_component(name)
        if name == "smart_defaults_factory":  # asks the instance for its region
            _hold(found._imds_region_provider._get_fetcher())
        return found


def _straight(config: Any) -> Any:
    config = AioConfig() if config is None else config
    if getattr(config, "http_session_cls", None) is AIOHTTPSession:
        config.http_session_cls = BoundedHTTPSession
    return config


def forbid_redirects(session: Any) -> None:
    """Let nothing that a session asks for credentials, a container or an instance either, send it elsewhere.

    Args:
        session: of aiobotocore. One that is not of this module is changed in that, and that alone.
    """
    if not isinstance(session, NoRedirectSession) and "create_client" not in vars(session):
        make = session.create_client
        session.create_client = lambda *args, config=None, **rest: make(*args, config=_straight(config), **rest)
    for provider in session.get_component("credential_provider").providers:
        for name in ("_fetcher", "_role_fetcher"):
            _hold(getattr(provider, name, None))


def _hold(fetcher: Any) -> None:
    """Let the connections of what fetches metadata follow no redirect, and raise RedirectedError for one."""
    connections = getattr(fetcher, "_session", None)
    if not isinstance(connections, AIOHTTPSession) or "send" in vars(connections):
        return
    connect, send = connections._get_session, connections.send

    async def get_session(proxy_url: Any) -> Any:
        return _Straight(await connect(proxy_url))

    async def send_straight(request: Any) -> Any:
        answer = await send(request)
        if answer.status_code in _REDIRECTS:
            raise RedirectedError(_host(answer))
        return answer

    connections._get_session, connections.send = get_session, send_straight


def refuse_redirect(response: Any = None, **_: Any) -> None:
    """Raise RedirectedError for a redirect that names no region; botocore would look for one without end."""
    if response is None or response[0].status_code not in _REDIRECTS:
        return
    answer, parsed = response
    told = "x-amz-bucket-region" in answer.headers or "Region" in parsed.get("Error", {})
    if not told or answer.status_code == 300:  # of which botocore makes no error
        raise RedirectedError(_host(answer))


def _host(answer: Any) -> str:
    """Where an answer sends to, less the name of a user, a password, a path and a query."""
    told = urlsplit(answer.headers.get("Location", ""))
    host = told.netloc.rpartition("@")[2]
    return f"{told.scheme}://{host}" if host else "another address"
