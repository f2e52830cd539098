"""What the code that serves a request knows of it besides its parameters; each task has its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.byte_range import RangeRequest
    from fsspec_csx.s3.transport.call_scope import Scope
    from fsspec_csx.s3.transport.pool import Transfer
    from fsspec_csx.s3.transport.signed_parts import FirstAttempt


@dataclass
class RequestOutcome:
    """How the attempts of one request have gone.

    Attributes:
        began: when it was begun, by time.monotonic().
        attempts: how often it was made.
        unanswered: whether an attempt was sent and not answered clearly.
        sent: when the last attempt was sent, by time.monotonic().
    """

    began: float = field(default_factory=time.monotonic)
    attempts: int = 0
    unanswered: bool = False
    sent: float = 0.0

    @property
    def retried_seconds(self) -> float:
        """For how many seconds it has been retried; 0 if it was made once."""
        return time.monotonic() - self.began if self.attempts > 1 else 0.0


@dataclass(frozen=True)
class RequestContext:
    """One for each request.

    Attributes:
        scope: of the call that it is a part of.
        outcome: of its attempts so far; None if nobody keeps it.
        wanted: the range that it fetches; None if its body goes another way.
        exchange: its response in a guarded session.
        listing: the pages of the listing that it is a part of.
        looking_up: whether a HEAD that finds nothing needs no further request about the bucket.
        sent: called with each bulk request as it is sent, and the Transfer that sends it.
        first: an attempt at the request that was made before botocore's.
    """

    scope: Scope | None = None
    outcome: RequestOutcome | None = None
    wanted: RangeRequest | None = None
    exchange: Any = None
    listing: Any = None
    looking_up: bool = False
    sent: Callable[[Any, Transfer], object] | None = None
    first: FirstAttempt | None = None


_NONE = RequestContext()
_context: ContextVar[RequestContext] = ContextVar("request_context", default=_NONE)


def current() -> RequestContext:
    """The context of the request that the running task makes."""
    return _context.get()


@contextmanager
def using(**changes: Any) -> Iterator[None]:
    """Change the context within a block.

    Args:
        changes: the attributes of ``RequestContext`` that change.
    """
    reset = _context.set(replace(_context.get(), **changes))
    try:
        yield
    finally:
        _context.reset(reset)
