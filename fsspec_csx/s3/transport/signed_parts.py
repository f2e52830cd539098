"""The parts of an upload: the first request is botocore's, and the others are signed from it as from a template.

What does not succeed at once is botocore's again: it takes the response as that of its own first attempt, and so
decides on retries, waits and errors as for any request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiobotocore.awsrequest import AioAWSResponse
from botocore.awsrequest import AWSRequest

from fsspec_csx.s3.transport.learned_template import FAILURES
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_context import using
from fsspec_csx.s3.transport.request_template import PartTemplate, PutTemplate

if TYPE_CHECKING:
    from fsspec_csx.s3.transport.pool import Transfer

logger = logging.getLogger("fsspec_csx")

Put = Callable[[], Awaitable[Mapping[str, Any]]]


class FirstAttempt:
    """An attempt at a request that was made without botocore and did not succeed.

    Args:
        transfer: that of the client whose credentials signed it.
        outcome: its response, or why there is none.
    """

    def __init__(self, transfer: Transfer, outcome: AioAWSResponse | Exception) -> None:
        self._transfer = transfer
        self._outcome: AioAWSResponse | Exception | None = outcome

    def take(self, transfer: Transfer) -> AioAWSResponse | None:
        """The response, or its error raised, once; None for another client, whose credentials may be better."""
        outcome, self._outcome = self._outcome, None
        if transfer is not self._transfer:
            return None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@dataclass
class _Model:
    """A request as botocore sent it, without its body: which it was, and the template made of it."""

    which: tuple[Any, ...]
    request: Any
    transfer: Transfer
    template: Any = None


class SignedParts:
    """Sends the parts of one upload."""

    operation = "UploadPart"

    def __init__(self) -> None:
        self._model: asyncio.Future[_Model | None] | None = None  # done when the first request is sent, or failed
        self._failures = 0  # since a request made from a template succeeded

    async def send(self, *which: Any, body: RequestBody, put: Put) -> Mapping[str, Any]:
        """Send a part in the running turn.

        Args:
            which: the number of the part, from 1.
            body: its bytes.
            put: sends it by botocore.

        Returns:
            The response, with its ETag.
        """
        if (awaited := self._model) is None:
            return await (self._learn(which, put) if self._failures < FAILURES else put())
        if (model := await asyncio.shield(awaited)) is None:
            return await put()
        model.template = model.template or await self._template_of(model)
        if model.template is None or not await model.transfer.signer.renew(model.template):
            return await put()
        outcome = await self._attempt(model, which, body)
        if not isinstance(outcome, Exception) and _is_good(outcome):
            self._failures = 0
            return _answer(outcome.headers)
        self._forget(awaited)
        if not self._is_for_botocore(outcome):
            return await put()
        with using(first=FirstAttempt(model.transfer, outcome)):
            return await put()

    async def _template_of(self, model: _Model) -> Any:
        return await model.transfer.signer.body_template(self.operation, PartTemplate, model.request)

    def _is_for_botocore(self, outcome: AioAWSResponse | Exception) -> bool:
        """Whether botocore should take this for the outcome of its own first attempt."""
        return True

    async def _attempt(self, model: _Model, which: tuple[Any, ...], body: RequestBody) -> AioAWSResponse | Exception:
        def make(prepared: RequestBody) -> Any:
            request = model.template.request(*which, prepared)
            logger.debug("Sending %s for %s", self.operation, request.url)
            return request

        try:
            return await model.transfer.prepared_and_sent(make, body)
        except Exception as error:
            return error

    async def _learn(self, which: tuple[Any, ...], put: Put) -> Mapping[str, Any]:
        """Send a part by botocore, and keep its request as it is sent."""
        learned: asyncio.Future[_Model | None] = asyncio.get_running_loop().create_future()
        self._model = learned

        def keep(request: Any, transfer: Transfer) -> None:
            if not learned.done():
                kept = AWSRequest(request.method, request.url, request.headers)  # not its body, which is the caller's
                learned.set_result(_Model(which, kept, transfer))

        try:
            with using(sent=keep):
                return await put()
        finally:
            if not learned.done():
                learned.set_result(None)
                self._forget(learned)

    def _forget(self, model: asyncio.Future[_Model | None]) -> None:
        """Learn anew with the next part, unless that has not helped."""
        if self._model is model:
            self._model = None
            self._failures += 1


class SignedPuts(SignedParts):
    """Makes objects of a bucket that all are made by the same parameters, in one request each.

    ``which`` are an object's key and the type of its contents; None for none.
    """

    operation = "PutObject"

    async def _template_of(self, model: _Model) -> Any:
        return await model.transfer.signer.body_template(self.operation, PutTemplate, model.request, model.which[0])

    def _is_for_botocore(self, outcome: AioAWSResponse | Exception) -> bool:
        """Not if the server refuses it: botocore's request may be another, without a checksum for one."""
        return isinstance(outcome, Exception) or outcome.status_code >= 500


def _answer(headers: Mapping[str, str]) -> Mapping[str, Any]:
    """The response as botocore's method returns it, as far as it is needed."""
    version = {"VersionId": headers["x-amz-version-id"]} if "x-amz-version-id" in headers else {}
    return {"ETag": headers["ETag"], **version}


def _is_good(answer: AioAWSResponse) -> bool:
    """Whether a part was stored; a body of a response may be that of an error, which botocore can read."""
    return 200 <= answer.status_code < 300 and bool(answer.headers.get("ETag")) and not len(answer.raw)
