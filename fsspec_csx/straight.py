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

from fsspec_csx.explain import RedirectedError

_REDIRECTS = (301, 302, 303, 307, 308)


class StraightHTTPSession(AIOHTTPSession):  # type: ignore[misc]
    """The connections of a client, which follow no redirect."""

    async def _get_session(self, proxy_url: Any) -> Any:
        return _Straight(await super()._get_session(proxy_url))


class _Straight:
    def __init__(self, session: Any) -> None:
        self._session = session

    def request(self, *args: Any, **kwargs: Any) -> Any:
        return self._session.request(*args, **kwargs, allow_redirects=False)


class StraightSession(AioSession):  # type: ignore[misc]
    """A session none of whose clients, those that ask for credentials included, follows a redirect."""

    def create_client(self, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As of ``AioSession``."""
        config = AioConfig() if config is None else config
        if getattr(config, "http_session_cls", None) is AIOHTTPSession:
            config.http_session_cls = StraightHTTPSession
        return super().create_client(*args, config=config, **kwargs)


def stay(response: Any = None, **_: Any) -> None:
    """Raise RedirectedError for a redirect that names no region; botocore would look for one without end."""
    if response is None or response[0].status_code not in _REDIRECTS:
        return
    answer, parsed = response
    if "x-amz-bucket-region" not in answer.headers and "Region" not in parsed.get("Error", {}):
        told = urlsplit(answer.headers.get("Location", ""))
        host = told.netloc.rpartition("@")[2]
        raise RedirectedError(f"{told.scheme}://{host}" if host else "another address")
