"""Handlers of botocore's events by which this package moves the bodies of bulk requests.

botocore signs each request, retries it and reads its errors; only its body is moved here, by a handler of the event
``before-send``, which may respond in place of botocore's own connection:
https://docs.aws.amazon.com/boto3/latest/guide/events.html
"""

from __future__ import annotations

import time
from typing import Any

from aiobotocore.awsrequest import AioAWSResponse

from fsspec_csx.s3.transport.pool import Transfer
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_context import current


class BulkHandlers:
    """The handlers for the requests of one client.

    Args:
        transfer: moves their bodies.
    """

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def before_building(self, params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        """Let a request body go unhashed; a handler of ``before-parameter-build``."""
        if isinstance(params.get("Body"), RequestBody):
            context["client_config"] = self._transfer.signer.body_config

    @staticmethod
    def before_signing(request: Any, **_: Any) -> None:
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
            self._transfer.slots.answered(time.monotonic() - outcome.sent)

    async def answer(self, request: Any, **_: Any) -> AioAWSResponse | None:
        """Move the body by a thread; a handler of ``before-send``, None to leave it to botocore."""
        context, transfer = current(), self._transfer
        if context.first is not None and (answer := context.first.take(transfer)) is not None:
            return answer
        if context.sent is not None:
            context.sent(request, transfer)
        body = request.body if isinstance(request.body, RequestBody) else context.wanted
        return None if body is None else await transfer.exchanged(request, body)
