"""Templates of similar requests, learned from the first of them, which botocore makes."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from botocore.awsrequest import AWSRequest

from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.request_context import using
from fsspec_csx.s3.transport.request_template import Template

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.transfer import Transfer

# After this many failures of a template's requests, or of making one, botocore makes all requests.
FAILURES = 5
# From this many similar requests on, a template takes less time than botocore.
WORTHWHILE = 3

R = TypeVar("R")
K = TypeVar("K", bound=Template)


class Signer:
    """Makes templates of one client's requests, where a template is possible.

    Args:
        client: of aiobotocore.
    """

    def __init__(self, client: Any) -> None:
        self._client = weakref.ref(client)  # weak, as handlers of the client refer to this
        self._credentials = compat.credentials_of(client)

    async def template(self, kind: type[K], request: Any, *named: Any) -> K | None:
        """Return a template made from a request that was sent; None if only botocore can make such requests.

        That is so without credentials, and with third-party event handlers, which could change each request.

        Args:
            kind: one of the classes of ``request_template``.
            named: its further arguments.
        """
        client = self._client()
        if self._credentials is None or client is None or not compat.has_own_handlers(client, kind.operation):
            return None
        try:
            return kind(request, await self._credentials.get_frozen_credentials(), *named)
        except (AttributeError, ValueError):
            return None

    async def renew(self, template: Template) -> bool:
        """Make a template sign with the client's present credentials; return whether there are any."""
        try:
            credentials = await self._credentials.get_frozen_credentials()
        except Exception:  # botocore's next request raises the error
            return False
        template.use(credentials)
        return credentials is not None


class Learned(NamedTuple):
    """A template, and the transfer of the client whose request it was made from."""

    template: Any
    transfer: Transfer


class LearnedTemplate:
    """The template of similar requests that start at different times."""

    def __init__(self) -> None:
        self._failures = 0
        self._made: asyncio.Future[Learned | None] | None = None

    @property
    def unknown(self) -> bool:
        """Whether the template must be learned from the next request; also in a forked process."""
        return self._made is None or self._made.get_loop() is not asyncio.get_running_loop()

    def learn(
        self,
        first: Callable[[], Awaitable[R]],
        kind: type[Template],
        *named: Any,
        settled: Callable[[], bool] = lambda: True,
    ) -> asyncio.Future[R]:
        """Start the first request; its template is known when it is sent.

        Args:
            first: makes the request through botocore.
            kind: the class of the template.
            named: its further arguments; see ``Signer.template``.
            settled: whether the request as sent is a valid template; if not, wait for the response.
        """
        sent: asyncio.Future[tuple[Any, Transfer] | None] = asyncio.get_running_loop().create_future()
        latest: tuple[Any, Transfer] | None = None

        def note(request: Any, transfer: Transfer) -> None:
            nonlocal latest
            latest = AWSRequest(request.method, request.url, request.headers), transfer  # without the caller's body
            if settled() and not sent.done():
                sent.set_result(latest)

        def ended(_: object) -> None:
            if not sent.done():
                sent.set_result(latest)

        with using(sent=note):
            task = asyncio.ensure_future(first())
        task.add_done_callback(ended)
        self._made = asyncio.ensure_future(self._make(sent, kind, *named))
        return task

    async def _make(
        self, sent: asyncio.Future[tuple[Any, Transfer] | None], kind: type[Template], *named: Any
    ) -> Learned | None:
        template = None
        if (made := await sent) is not None:
            with contextlib.suppress(Exception):  # botocore's next request raises the error
                template = await made[1].signer.template(kind, made[0], *named)
        if made is None or template is None:
            self._forget()
            return None
        return Learned(template, made[1])

    async def known(self) -> Learned | None:
        """Wait for the template, and return it; None if there is none."""
        assert self._made is not None
        return self._made.result() if self._made.done() else await asyncio.shield(self._made)

    def failed(self, learned: Learned) -> None:
        """Record that a request from the template failed, for example because its credentials have expired."""
        if self._made is not None and self._made.done() and self._made.result() is learned:
            self._forget()

    def _forget(self) -> None:
        self._failures += 1
        self._made = None
        if self._failures >= FAILURES:
            self._made = asyncio.get_running_loop().create_future()
            self._made.set_result(None)
