"""Handlers of botocore's events that move the bodies of requests for object data.

botocore signs each request, retries it and parses its errors. A handler of the event ``before-send``, which may respond
in place of botocore's own connection, moves the body:
https://docs.aws.amazon.com/boto3/latest/guide/events.html
"""

from __future__ import annotations

import copy
import time
from typing import Any

from aiobotocore.awsrequest import AioAWSResponse

from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_context import current
from fsspec_csx.s3.transport.transfer import Transfer


class BulkHandlers:
    """The handlers for the requests of one client."""

    def __init__(self, client: Any, transfer: Transfer) -> None:
        self._transfer = transfer
        self._body_config = _body_config(client.meta.config)

    def before_building(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        """Turn off hashing of a request body; a handler of ``before-parameter-build``."""
        if isinstance(params.get("Body"), RequestBody):
            context["client_config"] = self._body_config

    @staticmethod
    def before_signing(request: Any, **_: Any) -> None:
        """Request only the missing bytes of a range; a handler of ``request-created``."""
        if isinstance(request.data, RequestBody):
            del request.headers["Expect"]  # waiting for 100 Continue costs a round trip, and the body can be sent again
        elif (wanted := current().wanted) is not None and (span := wanted.header()):
            del request.headers["Range"]
            request.headers["Range"] = span  # resume after the last byte received
            if wanted.filled and wanted.etag:
                del request.headers["If-Match"]
                request.headers["If-Match"] = wanted.etag

    @staticmethod
    def note_sent(**_: Any) -> None:
        """Record when a request without a body is sent; a handler of ``before-send``."""
        if (outcome := current().outcome) is not None:
            outcome.sent = time.monotonic()

    def note_answered(self, response: Any = None, **_: Any) -> None:
        """Record the response time, or that the store is busy; a handler of ``needs-retry``."""
        if response is not None and (outcome := current().outcome) is not None and outcome.sent:
            self._transfer.slots.answered(time.monotonic() - outcome.sent, response[0].status_code)

    async def answer(self, request: Any, **_: Any) -> AioAWSResponse | None:
        """Make the request in a thread; a handler of ``before-send`` that returns None to leave it to botocore."""
        context, transfer = current(), self._transfer
        if context.first is not None and (answer := context.first.take(transfer)) is not None:
            return answer
        if context.sent is not None:
            context.sent(request, transfer)
        body = request.body if isinstance(request.body, RequestBody) else context.wanted
        return None if body is None else await transfer.exchanged(request, body)


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
