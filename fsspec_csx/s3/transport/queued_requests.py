"""Requests that threads take from a queue, and sign from a template."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.link import Link
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_template import PutTemplate, ReadTemplate, Template
from fsspec_csx.s3.transport.signed_parts import FirstAttempt, stored
from fsspec_csx.s3.transport.socket_loop import Steps

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.pool import Transfer

logger = logging.getLogger("fsspec_csx")


class SignedRead:
    """A read request.

    Args:
        key: of the object; None if the template is for one object.
        wanted: the range to fill.
        accept: called in a thread when the bytes have arrived; returns whether they are correct.
    """

    kind: type[Template] = ReadTemplate
    repeatable = True
    first = None

    def __init__(self, key: str | None, wanted: RangeRequest, accept: Callable[[RangeRequest], bool] = bool) -> None:
        self.key, self.body, self._accept = key, wanted, accept

    def give_up(self) -> None:
        """Make the thread of the request fail soon."""
        self.body.give_up()

    def forget_failures(self) -> None:
        """Prepare the request for botocore."""
        self.body.forget_failures()

    def making(self, transfer: Transfer, template: ReadTemplate, link: Link) -> Steps[Any]:
        """Make the request, and return the response."""
        request = template.request(self.key, self.body.header())
        logger.debug("Sending GetObject for %s, %s", request.url, self.body.header() or "all of it")
        head, _ = yield from link.getting(request, self.body)
        return head

    def is_valid_response(self, answer: Any) -> bool:
        """Return whether a response is valid for this request."""
        if answer.headers.get("ETag"):
            return self.body.complete
        self.body.restart()  # these bytes are no object's
        return False

    def accept(self) -> bool:
        """Process the bytes in a thread; return whether they are correct."""
        return self._accept(self.body)


class SignedWrite:
    """A request that writes an object.

    Args:
        key: of the object.
        content_type: of the object, or None.
        open_body: makes the body, in a thread; returns None if botocore has to send the object.

    Attributes:
        answer: of the server, as botocore's method returns it.
        length: in bytes.
        first: a failed attempt that botocore is to count as its own first.
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
        """Make the thread of the request fail soon."""
        self._given_up = True
        if (body := self.body) is not None:
            body.give_up()

    def forget_failures(self) -> None:
        """Prepare the request for botocore, which opens another body."""
        self.body = None

    def prepare(self) -> None:
        """Open the body, in a thread.

        Raises:
            OSError: if botocore has to send the object.
        """
        self.body = body = self._open_body()
        if body is None or self._given_up:
            msg = "The body cannot be sent from a template."
            raise OSError(msg)
        body.prepare()

    def making(self, transfer: Transfer, template: PutTemplate, link: Link) -> Steps[Any]:
        """Make the request, and return the response."""
        body = self.body
        assert body is not None
        request = template.request(self.key, self._type, body)
        logger.debug("Sending PutObject for %s", request.url)
        try:
            outcome = yield from transfer.exchange.putting(link, request, body)
        except Exception as error:
            self.first = FirstAttempt(transfer, error)
            raise
        if outcome.status_code >= 500:  # after other errors, botocore may send it differently: without a checksum
            self.first = FirstAttempt(transfer, outcome)
        return outcome

    def is_valid_response(self, answer: Any) -> bool:
        """Return whether a response is valid for this request."""
        self.answer = stored(answer)
        return self.answer is not None

    def accept(self) -> bool:
        """Drop the body, which may be an open file; in a thread."""
        self.length, self.body = len(self.body or b""), None
        return True
