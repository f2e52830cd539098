"""The context of a request, for the code that serves it; each task has its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiobotocore.awsrequest import AioAWSResponse

    from fsspec_csx.s3.transport.byte_range import RangeRequest
    from fsspec_csx.s3.transport.call_scope import Scope
    from fsspec_csx.s3.transport.transfer import Transfer


@dataclass
class RequestOutcome:
    """The history of a request's attempts.

    Attributes:
        began: when the request began, by time.monotonic().
        attempts: how many were made.
        unanswered: whether an attempt was sent and got no clear answer.
        sent: when the last attempt was sent, by time.monotonic().
    """

    began: float = field(default_factory=time.monotonic)
    attempts: int = 0
    unanswered: bool = False
    sent: float = 0.0

    @property
    def retried_seconds(self) -> float:
        """How many seconds the request has been retried; 0 if it was made once."""
        return time.monotonic() - self.began if self.attempts > 1 else 0.0


class FirstAttempt:
    """A failed attempt at a request that was made without botocore, which takes it for its own first attempt.

    So botocore decides on retries, waits and errors as for any request.

    Args:
        transfer: of the client whose credentials signed it.
        outcome: its response, or its error.
    """

    def __init__(self, transfer: Transfer, outcome: AioAWSResponse | Exception) -> None:
        self._transfer = transfer
        self._outcome: AioAWSResponse | Exception | None = outcome

    def take(self, transfer: Transfer) -> AioAWSResponse | None:
        """Return the response, or raise the error, once; None for another client, whose credentials may be newer."""
        outcome, self._outcome = self._outcome, None
        if transfer is not self._transfer:
            return None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@dataclass(frozen=True)
class RequestContext:
    """The context of one request.

    Attributes:
        scope: of the call that the request belongs to.
        outcome: of its attempts so far; None if it is not recorded.
        wanted: the range that it fetches, or None.
        guarded: its response in a guarded session.
        listing: the pages of the listing that it belongs to.
        looking_up: whether a HEAD for a missing object needs no further request about the bucket.
        sent: called with each request for object data as it is sent, and the Transfer that sends it.
        first: a failed attempt at the request that was made without botocore.
    """

    scope: Scope | None = None
    outcome: RequestOutcome | None = None
    wanted: RangeRequest | None = None
    guarded: Any = None
    listing: Any = None
    looking_up: bool = False
    sent: Callable[[Any, Transfer], object] | None = None
    first: FirstAttempt | None = None


_NONE = RequestContext()
_context: ContextVar[RequestContext] = ContextVar("request_context", default=_NONE)


def current() -> RequestContext:
    """Return the context of the request that the running task makes."""
    return _context.get()


@contextmanager
def using(**changes: Any) -> Iterator[None]:
    """Change attributes of the context within a block."""
    reset = _context.set(replace(_context.get(), **changes))
    try:
        yield
    finally:
        _context.reset(reset)
