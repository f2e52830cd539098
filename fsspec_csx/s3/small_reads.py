"""Many small objects of one bucket: asked for as one of them was, each signed by itself.

botocore takes some milliseconds to make a request, most of them for what is the same in all. Here only the first is
made by it; the others are that one with another key. What does not succeed at once is left to botocore, which knows
what to do about it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest

from fsspec_csx.s3.consistent_read import PinnedObject, verify_checksum
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.call_scope import Scope, scope, uncancelled
from fsspec_csx.s3.transport.pool import Transfer
from fsspec_csx.s3.transport.request_context import using

# Of each request by itself: the signature, and what botocore counts by.
_OWN = ("authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token")
_OF_BOTOCORE = ("amz-sdk-invocation-id", "amz-sdk-request")


@contextmanager
def recorded_requests() -> Iterator[list[Any]]:
    """A list of the GetObject requests that are sent within the block, as they were sent."""
    found: list[Any] = []
    with using(sent=found):
        yield found


class RequestTemplate:
    """What is the same in all requests for objects of a bucket.

    Args:
        request: one of them, as it was sent.
        key: of the object that it was for.
        credentials: those that it was signed with, frozen.

    Raises:
        ValueError: if it is not one that can be made for another key.
    """

    def __init__(self, request: Any, key: str, credentials: Any) -> None:
        kind, _, scope = _text(request.headers.get("Authorization", "")).partition(" Credential=")
        parts = scope.partition(",")[0].split("/")
        tail = quote(key, safe="/~")
        if kind != "AWS4-HMAC-SHA256" or parts[-1] != "aws4_request" or parts[0] != credentials.access_key:
            msg = "The request is not signed by these credentials."
            raise ValueError(msg)
        if not request.url.endswith(f"/{tail}"):
            msg = "The request's URL does not end in the key."
            raise ValueError(msg)
        self._base = request.url.removesuffix(tail)
        self._headers = {
            name: _text(value) for name, value in request.headers.items() if name.lower() not in (*_OWN, *_OF_BOTOCORE)
        }
        self._auth = S3SigV4Auth(credentials, parts[-2], parts[-3])

    def request(self, key: str) -> Any:
        """A signed request for an object."""
        made = AWSRequest("GET", self._base + quote(key, safe="/~"), headers=self._headers, stream_output=True)
        self._auth.add_auth(made)
        return made.prepare()


class SmallObjectReader:
    """The reading of many small objects by threads, each of which takes the next when it is ready.

    Args:
        transfer: whose threads and connections are used.
        siblings: makes the requests.
        advance: called on the event loop with the bytes read of each object.
    """

    def __init__(self, transfer: Transfer, siblings: RequestTemplate, advance: Callable[[int], object]) -> None:
        self._transfer = transfer
        self._siblings = siblings
        self._advance = advance
        self._loop = asyncio.get_running_loop()
        self._scope = Scope(scope())

    async def read(self, wanted: Sequence[tuple[int, PinnedObject, memoryview]]) -> dict[int, int]:
        """Fill memories with whole objects.

        Args:
            wanted: a number, an object, and the memory for it; if the object has another size, it is filled in part.

        Returns:
            The size of each object by its number. Those that did not come at once are left out.
        """
        queue, found = deque(wanted), dict[int, int]()
        count = min(self._transfer.in_flight, len(wanted))
        try:
            await asyncio.gather(*(self._thread(queue, found) for _ in range(count)))
        finally:
            bodies = self._scope.close()
            if bodies:
                await uncancelled(self._transfer.ended(bodies))
        return found

    async def _thread(self, queue: deque[Any], found: dict[int, int]) -> None:
        async with self._transfer._slots:
            await asyncio.wrap_future(self._transfer._threads.submit(self._work, queue, found))

    def _work(self, queue: deque[Any], found: dict[int, int]) -> None:
        while not self._scope.closed:
            try:
                number, state, memory = queue.popleft()
            except IndexError:
                return
            wanted = RangeRequest(0, probing=True)
            wanted.add(0, 0, memory)
            try:
                done: Future[None] = self._scope.begin(wanted, Future)
            except asyncio.CancelledError:
                return
            try:
                size = self._read(state, wanted, memory)
            finally:
                done.set_result(None)
            if size is not None and not self._scope.closed:
                found[number] = size
                self._loop.call_soon_threadsafe(self._advance, len(memory))

    def _read(self, state: PinnedObject, wanted: RangeRequest, memory: memoryview) -> int | None:
        try:
            answer = self._transfer._get(self._siblings.request(state.key), wanted)
            if answer.status_code != 200 or not wanted.complete:
                return None
            verify_checksum(state, wanted, memory[: wanted.length], [])
        except Exception:  # botocore makes the request next, and raises what is wrong
            return None
        return wanted.length if wanted.total is None else wanted.total


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
