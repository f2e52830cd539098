"""Non-public names of the S3 libraries, in one table that is checked at import.

If a release lacks one, or no longer calls what this package overrides, this module raises ImportError. Otherwise the
guards against redirects and endless bodies could be bypassed silently.
"""

from __future__ import annotations

import asyncio.tasks
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ssl import SSLSocket
from typing import Any

from aiobotocore.credentials import AioContainerProvider, AioInstanceMetadataProvider
from aiobotocore.httpsession import AIOHTTPSession
from botocore.httpsession import URLLib3Session
from fsspec import asyn
from urllib3.util.proxy import connection_requires_http_tunnel

from fsspec_csx.private_names import check, release
from fsspec_csx.s3.transport.call_scope import cancel_all, finish_despite_cancel

# Documented by asyncio: removes a task from those that the end of an event loop cancels.
unregister_task = asyncio.tasks._unregister_task

# The names that each class defines or sets in its instances, or that each function uses.
_NAMES: dict[str, tuple[str, ...]] = {
    "asyncio.tasks:_unregister_task": (),
    "aiobotocore.awsrequest:AioAWSResponse._content_prop": ("raw", "read"),
    "aiobotocore.config:AioConfig": ("http_session_cls",),
    "aiobotocore.credentials:AioContainerProvider": ("_fetcher",),
    "aiobotocore.credentials:AioInstanceMetadataProvider": ("_role_fetcher",),
    "aiobotocore.endpoint:AioEndpoint._do_get_response": ("_response_parser_factory", "create_parser"),
    "aiobotocore.httpsession:AIOHTTPSession": ("_get_ssl_context", "_setup_proxy_ssl_context"),
    "aiobotocore.httpsession:AIOHTTPSession._get_session": (),
    "aiobotocore.httpsession:AIOHTTPSession.send": ("_get_session", "request"),
    "aiobotocore.session:AioSession._create_client": ("_get_internal_component",),
    "aiobotocore.utils:AioContainerMetadataFetcher": ("_session",),
    "aiobotocore.utils:AioIMDSRegionProvider": ("_get_fetcher",),
    "aiobotocore.utils:AioInstanceMetadataFetcher": ("_session",),
    "aiobotocore.credentials:AioCredentials": ("get_frozen_credentials",),
    "botocore.client:BaseClient": ("_endpoint", "_request_signer"),
    "botocore.hooks:EventAliaser": ("_emitter",),
    "botocore.hooks:HierarchicalEmitter": ("_handlers",),
    "botocore.hooks:_PrefixTrie.prefix_search": (),
    "botocore.configprovider:SmartDefaultsConfigStoreFactory": ("_imds_region_provider",),
    "botocore.signers:RequestSigner": ("_credentials",),
    "botocore.httpsession:URLLib3Session": (
        "_get_connection_manager",
        "_pool_classes_by_scheme",
        "_proxy_config",
        "_setup_ssl_cert",
        "_verify",
    ),
    "botocore.httpsession:URLLib3Session.send": ("_setup_ssl_cert",),
    "fsspec.asyn:_run_coros_in_chunks": (),
    "s3fs.core:S3FileSystem": ("_call_s3", "_extra_tokenize_attributes", "get_s3"),
    "s3fs.core:S3FileSystem.set_session": ("_prepare_config_kwargs",),
    "urllib3.connectionpool:HTTPConnectionPool": ("_get_conn", "_prepare_proxy", "_put_conn", "_validate_conn", "pool"),
}

# The events of a request, and the packages whose handlers are known.
_EVENTS: tuple[str, ...] = ("provide-client-params", "before-parameter-build", "before-call", "request-created")
_EVENTS += ("choose-signer", "before-sign", "before-send", "response-received", "needs-retry", "before-parse")
_EVENTS += ("after-call",)
_OWNERS = ("botocore.", "aiobotocore.", "fsspec_csx.")


check(_NAMES)


async def run_in_chunks(coroutines: Sequence[Any], **options: Any) -> Any:
    """Run coroutines as fsspec does, which would leave some running after a cancellation.

    There may be none, which old releases refuse without a limit.
    """
    running: set[Any] = set()

    async def run(coroutine: Any) -> Any:
        running.add(task := asyncio.current_task())
        try:
            return await coroutine
        finally:
            running.discard(task)

    try:
        return await asyn._run_coros_in_chunks([run(each) for each in coroutines], **options) if coroutines else []
    except BaseException:
        await finish_despite_cancel(cancel_all(running))
        for each in coroutines:
            each.close()  # Python would warn of those that were not started
        raise


def http_session(client: Any) -> Any:
    return client._endpoint.http_session


def credentials_of(client: Any) -> Any:
    """Return botocore's Credentials that a client signs its requests with; None if it does not sign."""
    return client._request_signer._credentials


def has_own_handlers(client: Any, operation: str) -> bool:
    """Return whether all handlers for an operation belong to botocore, aiobotocore or this package."""
    registered = client.meta.events._emitter._handlers
    found = (each for event in _EVENTS for each in registered.prefix_search(f"{event}.s3.{operation}"))
    return all(str(getattr(each, "__module__", "")).startswith(_OWNERS) for each in found)


def replace_parsers(client: Any, wrap: Callable[[Any], Any]) -> None:
    """Replace the parsers of a client's responses; ``wrap`` makes the new factory of parsers from the present one."""
    client._endpoint._response_parser_factory = wrap(client._endpoint._response_parser_factory)


try:
    check({f"ssl:SSLSocket.{name}": ("_sslobj",) for name in ("read", "send")})
    KNOWS_TLS = True
except ImportError:  # fall back to Python's public functions, which are slower
    KNOWS_TLS = False


def socket_read(link: Any) -> Callable[[int, memoryview], int]:
    """Return a function that reads from a socket into a buffer."""
    if KNOWS_TLS and isinstance(link, SSLSocket):
        return link._sslobj.read  # type: ignore[attr-defined,no-any-return]
    return lambda most, memory: link.recv_into(memory, most)


def socket_write(link: Any) -> Callable[[memoryview], int]:
    """Return a function that sends the first bytes of a buffer to a socket, and returns their number."""
    if KNOWS_TLS and isinstance(link, SSLSocket) and link._sslobj:  # type: ignore[attr-defined]
        return link._sslobj.write  # type: ignore[attr-defined,no-any-return]
    return link.send  # type: ignore[no-any-return]


class BlockingSession(URLLib3Session):  # type: ignore[misc]
    """botocore's blocking connections; they also verify a proxy by https that forwards requests by http."""

    def _setup_ssl_cert(self, conn: Any, url: str, verify: bool | str) -> None:
        if conn.scheme == "https" and url.startswith("http:"):
            verify = verify and (self._proxy_config.settings.get("proxy_ca_bundle") or verify)
        super()._setup_ssl_cert(conn, f"{conn.scheme}:", verify)


def pool_to(session: BlockingSession, url: str) -> Any:
    """Return the pool of a session with the connections to a URL, or to its proxy."""
    manager = session._get_connection_manager(url, session._proxy_config.proxy_url_for(url))
    pool = manager.connection_from_url(url)
    session._setup_ssl_cert(pool, url, session._verify)
    return pool


def is_forwarded(pool: Any, url: str) -> bool:
    """Return whether a proxy passes on requests, rather than the bytes of a connection."""
    scheme = url.partition(":")[0]
    return pool.proxy is not None and not connection_requires_http_tunnel(pool.proxy, pool.proxy_config, scheme)


def take_connection(pool: Any) -> Any:
    """Take a connection from a pool; it may not be connected yet."""
    return pool._get_conn()


def give_connection_back(pool: Any, connection: Any) -> None:
    pool._put_conn(connection)


def close_idle(pool: Any) -> None:
    """Close the connections of a pool that no request uses."""
    idle = []
    if (waiting := pool.pool) is None:
        return
    with suppress(queue.Empty):
        while True:
            idle.append(waiting.get_nowait())
    for connection in filter(None, idle):
        connection.close()
    with suppress(queue.Full):  # others were given back meanwhile
        for _ in idle:
            waiting.put_nowait(None)


def connected_socket(pool: Any, connection: Any, *, forwarded: bool) -> Any:
    """Return the socket of a connection, with the timeouts of the pool; connect if necessary."""
    if (link := connection.sock) is None:
        connection.timeout = pool.timeout.connect_timeout
        if pool.proxy is None or forwarded:
            connection.connect()
        else:
            pool._prepare_proxy(connection)  # connects too
        pool._validate_conn(connection)  # warns if certificates are not verified
        link = connection.sock
        set_read_timeout(pool, link)
    return link


def set_read_timeout(pool: Any, link: Any) -> None:
    """Let a socket block, with the timeout of its pool."""
    link.settimeout(pool.timeout.read_timeout)


def use_pools(session: BlockingSession, **pools: type[Any]) -> None:
    """Set the classes of pools that a session creates, by the schemes of URLs."""
    session._pool_classes_by_scheme.update(pools)


def region_fetcher(smart_defaults: Any) -> Any:
    """Return the fetcher that asks the instance for its region."""
    return smart_defaults._imds_region_provider._get_fetcher()


def credential_fetchers(session: Any) -> Iterator[Any]:
    """Yield the fetchers that ask a container or an instance for credentials."""
    for provider in session.get_component("credential_provider").providers:
        if isinstance(provider, AioContainerProvider):
            yield provider._fetcher
        elif isinstance(provider, AioInstanceMetadataProvider):
            yield provider._role_fetcher


def connections_of(fetcher: Any) -> Any:
    """Return the connections of a metadata fetcher; ImportError if they are not aiohttp's, and cannot be guarded."""
    connections = getattr(fetcher, "_session", None)
    if not isinstance(connections, AIOHTTPSession):
        msg = f"{release('aiobotocore')} asks for metadata by a {type(connections).__name__}, which is not supported."
        raise ImportError(msg)
    return connections
