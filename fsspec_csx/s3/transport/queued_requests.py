"""Requests that threads take from a queue, and sign from a template."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.exchange import answer, botocore_errors
from fsspec_csx.s3.transport.link import Link
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_context import FirstAttempt
from fsspec_csx.s3.transport.request_template import PartTemplate, PutTemplate, ReadTemplate, Template
from fsspec_csx.s3.transport.response_head import ResponseHead
from fsspec_csx.s3.transport.signature import SignedRequest
from fsspec_csx.s3.transport.socket_loop import Steps

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.transfer import Transfer

logger = logging.getLogger("fsspec_csx")


class QueuedRead:
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

    def making(self, transfer: Transfer, template: ReadTemplate, link: Link) -> Steps[ResponseHead]:
        """Make the request, and return the head of the response."""
        span = self.body.header()
        request = template.request(self.key, span)
        logger.debug("Sending GetObject for %s, %s", request.url, span or "all of it")
        head, _ = yield from link.getting(request, self.body)
        return head

    def is_valid_response(self, head: ResponseHead) -> bool:
        """Return whether the response was valid for this request."""
        if head.headers.get("ETag"):
            return self.body.complete
        self.body.restart()  # these bytes are no object's
        return False

    def accept(self) -> bool:
        """Process the bytes in a thread; return whether they are correct."""
        return self._accept(self.body)


class _QueuedUpload(ABC):
    """A request with a body.

    Attributes:
        answer: of the server, as botocore's method returns it.
        first: a failed attempt that botocore is to count as its own first.
    """

    repeatable = False
    body: RequestBody | None = None
    answer: Mapping[str, Any] | None = None
    first: FirstAttempt | None = None

    def give_up(self) -> None:
        """Make the thread of the request fail soon."""
        if (body := self.body) is not None:
            body.give_up()

    @abstractmethod
    def _request(self, template: Any, body: RequestBody) -> SignedRequest:
        """Return the request, signed from a template."""

    def making(self, transfer: Transfer, template: Template, link: Link) -> Steps[ResponseHead]:
        """Make the request, and return the head of the response."""
        body = self.body
        assert body is not None
        request = self._request(template, body)
        logger.debug("Sending %s for %s", template.operation, request.url)
        try:
            with botocore_errors(link, request, body):
                head, data = yield from link.putting(request, body)
        except Exception as error:
            self.first = FirstAttempt(transfer, error)
            raise
        self.answer = _stored(head, data)
        if self._is_counted(head):
            self.first = FirstAttempt(transfer, answer(request, head, data))
        return head

    @abstractmethod
    def _is_counted(self, head: ResponseHead) -> bool:
        """Return whether botocore is to count a response as its own first."""

    def is_valid_response(self, _: ResponseHead) -> bool:
        """Return whether the response was valid for this request."""
        return self.answer is not None


class QueuedWrite(_QueuedUpload):
    """A request that writes an object.

    Args:
        key: of the object.
        content_type: returns that of the object, or None; called in a thread.
        open_body: makes the body, in a thread; returns None if botocore has to send the object.

    Attributes:
        length: in bytes.
    """

    kind: type[Template] = PutTemplate

    def __init__(
        self, key: str, content_type: Callable[[], str | None], open_body: Callable[[], RequestBody | None]
    ) -> None:
        self.key, self._type, self._open_body = key, content_type, open_body
        self.length = 0
        self._given_up = False

    def give_up(self) -> None:
        """Make the thread of the request fail soon."""
        self._given_up = True
        super().give_up()

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

    def _request(self, template: PutTemplate, body: RequestBody) -> SignedRequest:
        return template.request(self.key, self._type(), body)

    def _is_counted(self, head: ResponseHead) -> bool:
        return head.status_code >= 500  # after other errors, botocore may send it without a checksum

    def accept(self) -> bool:
        """Drop the body, which may be an open file; in a thread."""
        self.length, self.body = len(self.body or b""), None
        return True


class QueuedPart(_QueuedUpload):
    """A request that sends a part of an upload.

    Args:
        number: of the part, from 1.
        body: its bytes.
        stored: called when the server has it: with ``answer``, in a thread.
    """

    kind: type[Template] = PartTemplate
    key = None

    def __init__(self, number: int, body: RequestBody, stored: Callable[[QueuedPart], object]) -> None:
        self.number, self.body, self._stored = number, body, stored

    def forget_failures(self) -> None:
        """Do nothing, as botocore sends the same body."""

    def prepare(self) -> None:
        """Compute the checksum, in a thread."""
        assert self.body is not None
        self.body.prepare()

    def _request(self, template: PartTemplate, body: RequestBody) -> SignedRequest:
        return template.request(self.number, body)

    def _is_counted(self, head: ResponseHead) -> bool:
        return self.answer is None

    def accept(self) -> bool:
        """Report that the server has the part, and drop the body, whose memory may be used again."""
        self._stored(self)
        self.body = None
        return True


class Turn:
    """What a thread does in its turn, as the body of a scope."""

    def __init__(self) -> None:
        self.thread: Future[Any] | None = None
        self.request: QueuedRead | QueuedWrite | QueuedPart | None = None
        self.accepting = False  # whether the thread is processing the bytes received
        self.given_up = False

    def give_up(self) -> None:
        """Make the thread end soon."""
        self.given_up = True
        if (request := self.request) is not None:
            request.give_up()

    @property
    def uses_caller_memory(self) -> bool:
        """Whether the thread uses the caller's memory, or processes received bytes."""
        body = None if (request := self.request) is None else request.body
        return self.accepting or (body is not None and body.uses_caller_memory)


def _stored(head: ResponseHead, data: bytes) -> Mapping[str, Any] | None:
    """Return a response as botocore's method does, with its ETag and version; None unless the bytes were stored.

    A response with a body may be an error, which botocore parses.
    """
    if not 200 <= head.status_code < 300 or not (etag := head.headers.get("ETag")) or data:
        return None
    version = head.headers.get("x-amz-version-id")
    return {"ETag": etag} if version is None else {"ETag": etag, "VersionId": version}
