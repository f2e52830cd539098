"""Requests that are signed from a template, each of which a thread takes from a queue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.link import Link
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_template import PutTemplate, ReadTemplate, Template
from fsspec_csx.s3.transport.signed_parts import FirstAttempt, stored

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.pool import Transfer

logger = logging.getLogger("fsspec_csx")


class SignedRead:
    """A request for bytes.

    Args:
        key: of the object; None if the template is of one object.
        wanted: the range.
        accept: called in a thread when the bytes have arrived; whether they are good.
    """

    kind: type[Template] = ReadTemplate
    repeatable = True  # without harm
    first = None

    def __init__(self, key: str | None, wanted: RangeRequest, accept: Callable[[RangeRequest], bool] = bool) -> None:
        self.key, self.body, self._accept = key, wanted, accept

    def give_up(self) -> None:
        """Make the thread that makes it fail soon."""
        self.body.give_up()

    def forget_failures(self) -> None:
        """Prepare it for botocore."""
        self.body.forget_failures()

    def made(self, transfer: Transfer, template: ReadTemplate, link: Link | None) -> Any:
        """In a thread: make it, and return the response."""
        request = template.request(self.key, self.body.header())
        logger.debug("Sending GetObject for %s, %s", request.url, self.body.header() or "all of it")
        return (link or transfer.exchange).get(request, self.body)

    def understood(self, answer: Any) -> bool:
        """Whether a response is one to such a request."""
        return self.body.complete and bool(answer.headers.get("ETag"))

    def accept(self) -> bool:
        """In a thread: use the bytes; whether they are good."""
        return self._accept(self.body)


class SignedWrite:
    """A request that makes an object.

    Args:
        key: of the object.
        content_type: of it; None for none.
        open_body: makes its body in a thread; None if it cannot be sent so.

    Attributes:
        answer: of the server, as botocore's method returns it.
        length: in bytes.
        first: the attempt, if it did not succeed and botocore should take it for its own.
    """

    kind: type[Template] = PutTemplate
    repeatable = False

    def __init__(self, key: str, content_type: str | None, open_body: Callable[[], RequestBody | None]) -> None:
        self.key, self._type, self._open_body = key, content_type, open_body
        self.body: RequestBody | None = None
        self.answer: Mapping[str, Any] | None = None
        self.length = 0
        self.first: FirstAttempt | None = None
        self._given_up = False

    def give_up(self) -> None:
        """Make the thread that makes it fail soon."""
        self._given_up = True
        if (body := self.body) is not None:
            body.give_up()

    def forget_failures(self) -> None:
        """Prepare it for botocore: it gets another body."""
        self.body = None

    def made(self, transfer: Transfer, template: PutTemplate, link: Link | None) -> Any:
        """In a thread: make it, and return the response."""
        self.body = body = self._open_body()
        if body is None or self._given_up:
            msg = "It is not sent so."
            raise OSError(msg)
        body.prepare()
        request = template.request(self.key, self._type, body)
        logger.debug("Sending PutObject for %s", request.url)
        try:
            outcome: Any = transfer.exchange.put_signed(request, body, link)
        except Exception as error:
            self.first = FirstAttempt(transfer, error)
            raise
        if outcome.status_code >= 500:  # what the server refuses, botocore may send otherwise: without a checksum
            self.first = FirstAttempt(transfer, outcome)
        return outcome

    def understood(self, answer: Any) -> bool:
        """Whether a response is one to such a request."""
        self.answer = stored(answer)
        return self.answer is not None

    def accept(self) -> bool:
        """In a thread: drop the body, which may be an open file."""
        self.length, self.body = len(self.body or b""), None
        return True
