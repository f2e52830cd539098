"""All handlers of botocore's events that this package adds to a client, in the order in which they are called.

https://docs.aws.amazon.com/boto3/latest/guide/events.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fsspec_csx.s3.client import no_redirects, response_validation, retries
from fsspec_csx.s3.client.checksum_headers import ChecksumHeaders
from fsspec_csx.s3.transport import compat
from fsspec_csx.s3.transport.bulk_handlers import BulkHandlers
from fsspec_csx.s3.transport.pool import Transfer

_TRANSFERS = ("GetObject", "PutObject", "UploadPart")
# Requests before a transfer; their response times show how far the store is.
_TIMED = ("HeadObject", "CreateMultipartUpload")
_LISTINGS = tuple(response_validation.NEXT)


def register(
    client: Any, transfer: Transfer, headers: Iterable[ChecksumHeaders], first_contact: Callable[..., Any] | None
) -> None:
    """Register this package's handlers for the requests of a client.

    botocore calls the handlers of one operation before those of all operations, each in the order of this list; its own
    retry handler for ``needs-retry`` is last. All are called; the first that returns seconds sets the wait.
    """
    no_redirects.check_guarded(client)
    bulk = BulkHandlers(transfer)
    compat.replace_parsers(client, response_validation.Parsers)
    first, last = client.meta.events.register_first, client.meta.events.register_last
    for operation in _TRANSFERS:
        first(f"before-parameter-build.s3.{operation}", bulk.before_building)
    for operation in _LISTINGS:
        first(f"before-parameter-build.s3.{operation}", response_validation.note_request)
    for operation in _TRANSFERS:
        first(f"request-created.s3.{operation}", bulk.before_signing)
    for kind in headers:
        for operation in kind.operations:
            first(f"request-created.s3.{operation}", kind.before_signing)
            first(f"needs-retry.s3.{operation}", kind.answered)
    for operation in _TRANSFERS:
        client.meta.events.register(f"before-send.s3.{operation}", bulk.answer)
    for operation in _TIMED:
        first(f"before-send.s3.{operation}", bulk.note_sent)
        first(f"needs-retry.s3.{operation}", bulk.note_answered)
    first("needs-retry.s3", no_redirects.refuse_redirect)
    first("needs-retry.s3", retries.note)
    first("needs-retry.s3", response_validation.explain_damage)
    first("needs-retry.s3", retries.give_up)
    if first_contact is not None:
        first("needs-retry.s3", first_contact)
        first("needs-retry.s3", retries.retry_after)
    last("after-call.s3", response_validation.validate)
