"""The parts of an upload: botocore makes the first request, which is the template for the others.

botocore repeats a part that does not succeed at once. It takes the failed response as that of its own first attempt,
and so decides on retries, waits and errors as for any request.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiobotocore.awsrequest import AioAWSResponse

from fsspec_csx.s3.transport.learned_template import Learned, LearnedTemplate
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_context import using
from fsspec_csx.s3.transport.request_template import PartTemplate

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.pool import Transfer

logger = logging.getLogger("fsspec_csx")

Put = Callable[[], Awaitable[Mapping[str, Any]]]


class FirstAttempt:
    """A failed attempt at a request that was made without botocore.

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


class SignedParts:
    """Sends the parts of one upload."""

    def __init__(self) -> None:
        self._learned = LearnedTemplate()

    async def send(self, number: int, body: RequestBody, put: Put) -> Mapping[str, Any]:
        """Send a part within the caller's turn, and return the response, with its ETag.

        Args:
            number: of the part, from 1.
            body: its bytes.
            put: sends it through botocore.
        """
        if self._learned.unknown:
            return await self._learned.learn(put, PartTemplate)
        learned = await self._learned.known()
        if learned is None or not await learned.transfer.signer.renew(learned.template):
            return await put()
        outcome = await _attempt(learned, number, body)
        if not isinstance(outcome, Exception) and (answer := stored(outcome)) is not None:
            self._learned.succeeded()
            return answer
        self._learned.failed(learned)
        with using(first=FirstAttempt(learned.transfer, outcome)):
            return await put()


async def _attempt(learned: Learned, number: int, body: RequestBody) -> AioAWSResponse | Exception:
    def make(prepared: RequestBody) -> Any:
        request = learned.template.request(number, prepared)
        logger.debug("Sending UploadPart for %s", request.url)
        return request

    try:
        return await learned.transfer.prepared_and_sent(make, body)
    except Exception as error:
        return error


def stored(answer: AioAWSResponse) -> Mapping[str, Any] | None:
    """Return a response as botocore's method does, with its ETag and version; None unless the bytes were stored.

    A response with a body may be an error, which botocore parses.
    """
    if not 200 <= answer.status_code < 300 or not answer.headers.get("ETag") or len(answer.raw):
        return None
    version = {"VersionId": answer.headers["x-amz-version-id"]} if "x-amz-version-id" in answer.headers else {}
    return {"ETag": answer.headers["ETag"], **version}
