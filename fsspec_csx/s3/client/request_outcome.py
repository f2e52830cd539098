"""Whether a request that failed may have been applied all the same, because a response to it was lost.

A request is made several times before it fails. If the server applied it once and that response was lost, the responses
to the other attempts do not show it.
"""

from __future__ import annotations

from typing import Any

from botocore import exceptions as boto

from fsspec_csx.errors import CSXError
from fsspec_csx.s3.transport.request_context import RequestOutcome, current

# Operations that create, replace or delete objects.
_CHANGES = frozenset(
    {"PutObject", "CompleteMultipartUpload", "CopyObject", "DeleteObject", "DeleteObjects", "CreateBucket"}
)
# These failed before anything was sent.
_NOT_SENT = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError)
# With these a server says that something went wrong, and not before what.
_VAGUE = frozenset({500, 502, 504})


def note_unclear() -> None:
    """Note that the response to the current request does not show whether it was applied."""
    if (outcome := current().outcome) is not None:
        outcome.unanswered = True


def note(response: Any = None, caught_exception: Exception | None = None, **_: Any) -> None:
    """Note an attempt of the current request; a handler of ``needs-retry``."""
    outcome = current().outcome
    if outcome is None:
        return
    outcome.attempts += 1
    if caught_exception is not None:
        outcome.unanswered = outcome.unanswered or not isinstance(caught_exception, _NOT_SENT)
    elif response is not None:
        outcome.unanswered = outcome.unanswered or response[0].status_code in _VAGUE


def mark(error: Exception, outcome: RequestOutcome, operation: str, target: str) -> None:
    """Set ``maybe_applied`` of an error if the request may have been applied."""
    if outcome.unanswered and operation in _CHANGES and isinstance(error, CSXError):
        error.mark_maybe_applied(f"{operation} on {target}")
