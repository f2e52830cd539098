"""Signer: makes templates of a client's requests, and signs them with the client's present credentials."""

from __future__ import annotations

import copy
import weakref
from typing import Any, TypeVar

from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.request_template import Template

T = TypeVar("T", bound=Template)


class Signer:
    """Makes templates of one client's requests, where a template is possible.

    Args:
        client: of aiobotocore.

    Attributes:
        body_config: the configuration of the client for requests with bodies.
    """

    def __init__(self, client: Any) -> None:
        self.body_config = _body_config(client.meta.config)
        self._client = weakref.ref(client)  # weak, as handlers of the client refer to this
        self._credentials = compat.credentials_of(client)

    async def template(self, kind: type[T], request: Any, *named: Any) -> T | None:
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


def _body_config(config: Any) -> Any:
    """Return the client's configuration without hashing of bodies, unless the user set that.

    A checksum in a signed header protects bodies, and a SHA-256 takes longer than sending them. botocore also adds no
    checksum of its own, which the server may have refused.
    """
    changed = copy.copy(config)
    changed.request_checksum_calculation = "when_required"
    options = dict(config.s3 or {})
    if options.get("payload_signing_enabled") is None:
        options["payload_signing_enabled"] = False
    changed.s3 = options
    return changed
