"""Retries: when a request is repeated, and whether a failed request may have been applied.

Retries end early at an endpoint that has never answered, wait as Retry-After says, and do not continue for minutes. If
the server applied an attempt whose response was lost, later responses do not show that.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from botocore import exceptions as boto

from fsspec_csx.errors import CSXError
from fsspec_csx.s3.transport.failures import GaveUpError, NotStartedError, lacking
from fsspec_csx.s3.transport.request_context import RequestOutcome, current

# Operations that create, replace or delete objects.
_CHANGES = frozenset(
    {"PutObject", "CompleteMultipartUpload", "CopyObject", "DeleteObject", "DeleteObjects", "CreateBucket"}
)
# These errors occur before anything is sent.
_NOT_SENT = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError, boto.SSLError)
# Statuses of proxies, as Cloudflare's, for a store that fails or is late; botocore does not retry after them.
_OF_PROXIES = frozenset(range(520, 525))
# With these statuses, the server may have applied the request or not.
_VAGUE = _OF_PROXIES | {500, 502, 504}
# The errors of a connection that failed.
_FAILED = (boto.ConnectionError, boto.ConnectionClosedError, boto.ReadTimeoutError)
# The attempts of a request unless the configuration sets them; botocore's default.
_ATTEMPTS = 5
_LONGEST_WAIT, _FIRST_PROXY_WAIT = 60.0, 0.1
# botocore makes a round of attempts, and s3fs repeats such rounds; no round is added after this many seconds.
_ROUNDS_SECONDS = 30.0

FIRST_CONTACT_SECONDS = 5.0
"""How long to retry an endpoint that has never responded, if it refuses connections or has no address yet.

A server that is starting usually responds within that time. The option
``retries={"total_max_attempts": 1}`` makes one attempt.
"""
_FIRST_WAIT, _LONGEST_FIRST_WAIT = 0.1, 1.0


class FirstContact:
    """Ends botocore's retries at an endpoint that has never responded: it is down, starting or misspelled, not busy."""

    def __init__(self) -> None:
        self._answered = False

    def __call__(
        self, request_dict: Any, response: Any = None, caught_exception: Exception | None = None, **_: Any
    ) -> None:
        """Leave the retry to botocore, unless the endpoint has never responded.

        In that case, raise NotStartedError to repeat the request, as botocore makes too few attempts for that.
        """
        if response is not None:
            self._answered = True
        elif not self._answered and isinstance(caught_exception, (boto.ConnectionError, boto.ReadTimeoutError)):
            starting = type(caught_exception) is boto.EndpointConnectionError and not lacking(caught_exception)
            if starting and _most_attempts(request_dict) > 1 and (outcome := current().outcome):
                left = outcome.began + FIRST_CONTACT_SECONDS - time.monotonic()
                if left > 0:
                    wait = min(_FIRST_WAIT * 2 ** (outcome.attempts - 1), _LONGEST_FIRST_WAIT, left)
                    raise NotStartedError(wait) from caught_exception
            raise GaveUpError from caught_exception


def give_up(attempts: int, request_dict: Any, caught_exception: Exception | None = None, **_: Any) -> None:
    """Raise GaveUpError if the connection failed in the last attempt of a round, and the request began long ago."""
    outcome = current().outcome
    if not isinstance(caught_exception, _FAILED) or outcome is None or attempts < _most_attempts(request_dict):
        return
    if time.monotonic() - outcome.began > _ROUNDS_SECONDS:
        raise GaveUpError from caught_exception


def _most_attempts(request_dict: Any) -> int:
    retries = request_dict["context"]["client_config"].retries or {}
    return int(retries.get("total_max_attempts", _ATTEMPTS))


def retry_after(attempts: int, request_dict: Any, response: Any = None, **_: Any) -> float | None:
    """Return the seconds to wait, by the header Retry-After if there is one; None to leave the retry to botocore."""
    status = None if response is None else response[0].status_code
    if attempts >= _most_attempts(request_dict):
        return None
    if status == 408 or status in _OF_PROXIES:
        return float(_FIRST_PROXY_WAIT * 2**attempts)
    if status not in (429, 503):
        return None
    value = response[0].headers.get("Retry-After", "")
    if value.isdecimal():
        return min(float(value), _LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    return min(max((moment - datetime.now(timezone.utc)).total_seconds(), 0.0), _LONGEST_WAIT)


def note_unclear() -> None:
    """Record that the response to the current request does not show whether it was applied."""
    if (outcome := current().outcome) is not None:
        outcome.unanswered = True


def note(response: Any = None, caught_exception: Exception | None = None, **_: Any) -> None:
    """Record an attempt of the current request; a handler of ``needs-retry``."""
    outcome = current().outcome
    if outcome is None:
        return
    outcome.attempts += 1
    if caught_exception is not None:
        outcome.unanswered = outcome.unanswered or not isinstance(caught_exception, _NOT_SENT)
    elif response is not None:
        outcome.unanswered = outcome.unanswered or response[0].status_code in _VAGUE


def mark(error: Exception, outcome: RequestOutcome, operation: str, target: str) -> None:
    """Mark an error with ``maybe_applied`` if the request may have been applied."""
    if outcome.unanswered and operation in _CHANGES and isinstance(error, CSXError):
        error.mark_maybe_applied(f"{operation} on {target}")
