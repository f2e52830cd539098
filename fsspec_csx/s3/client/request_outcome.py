"""Doubt: whether a request that failed may have been done all the same, as an answer to it was not heard.

A request is made several times before it fails. If one of these times the server did what was asked, and its answer
was lost, what the others were answered does not tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from botocore import exceptions as boto

from fsspec_csx.errors import CSXError

# What makes, replaces or deletes objects.
_CHANGES = frozenset(
    {"PutObject", "CompleteMultipartUpload", "CopyObject", "DeleteObject", "DeleteObjects", "CreateBucket"}
)
# Of these the server was never asked.
_NOT_SENT = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError)
# By which servers tell that something went wrong, and not before what.
_VAGUE = frozenset({500, 502, 504})


class RequestOutcome:
    """Of one request.

    Attributes:
        unanswered: whether it was sent, and not answered clearly, once at least.
    """

    def __init__(self) -> None:
        self.unanswered = False


_current: ContextVar[RequestOutcome | None] = ContextVar("current", default=None)


@contextmanager
def track() -> Iterator[RequestOutcome]:
    """Watch the request that the block makes."""
    found = RequestOutcome()
    reset = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(reset)


def watch(client: Any) -> None:
    """Let a client note what is not answered."""
    client.meta.events.register_first("needs-retry.s3", _note)


def note_unclear() -> None:
    """The request that is being made was answered with something that does not tell what was done."""
    if (found := _current.get()) is not None:
        found.unanswered = True


def _note(response: Any = None, caught_exception: Exception | None = None, **_: Any) -> None:
    found = _current.get()
    if found is None:
        return
    if caught_exception is not None:
        found.unanswered = found.unanswered or not isinstance(caught_exception, _NOT_SENT)
    elif response is not None:
        found.unanswered = found.unanswered or response[0].status_code in _VAGUE


def mark(error: Exception, found: RequestOutcome, operation: str, target: str) -> None:
    """Let an error of ours say that what was asked may have been done, if that is so."""
    if found.unanswered and operation in _CHANGES and isinstance(error, CSXError):
        error.mark_maybe_applied(f"{operation} on {target}")
