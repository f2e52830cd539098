"""Many objects that one call reads: asked for as one of them was, each signed by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fsspec_csx.errors import ChecksumError
from fsspec_csx.s3.consistent_read import PinnedObject, verify_checksum
from fsspec_csx.s3.multipart import gather_or_cancel
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.compat import run_in_chunks
from fsspec_csx.s3.transport.request_context import using
from fsspec_csx.s3.transport.signed_requests import SignedRead, SignedReads

MANY = 3
"""Of so many objects of a bucket at least, one is asked for by botocore, and the others as that one was."""


class ObjectRequest(SignedRead):
    """A request for one of the objects.

    Args:
        state: of the object.
        number: of it in the call.
    """

    def __init__(
        self, state: PinnedObject, wanted: RangeRequest, accept: Callable[[RangeRequest], bool], number: int
    ) -> None:
        super().__init__(state.key, wanted, accept)
        self.state, self.number = state, number


R = TypeVar("R", bound=ObjectRequest)


def has_checksum(state: PinnedObject, wanted: RangeRequest, memory: memoryview) -> bool:
    """Whether the bytes of a whole object have its checksum, if the server has one."""
    try:
        verify_checksum(state, wanted, memory, [])
    except ChecksumError:
        return False
    return True


async def read_alike(
    fs: Any,
    reads: Sequence[R],
    alone: Callable[[R], Awaitable[None]],
    finished: Callable[[R], object],
    most: int | None = None,
) -> None:
    """Read objects.

    Args:
        alone: reads an object by botocore: the first of each bucket, and what did not come at once.
        finished: called on the event loop for each of the others.
        most: how many at a time.
    """
    buckets: dict[str, list[R]] = {}
    others: list[R] = []
    for read in reads:
        (others if read.state.version else buckets.setdefault(read.state.bucket, [])).append(read)
    for bucket in [name for name, group in buckets.items() if len(group) < MANY]:
        others += buckets.pop(bucket)
    await gather_or_cancel(
        [
            *(_read_bucket(fs, group, alone, finished, most) for group in buckets.values()),
            _read_alone(others, alone, most),
        ]
    )


async def _read_alone(reads: Sequence[R], alone: Callable[[R], Awaitable[None]], most: int | None) -> None:
    await run_in_chunks([alone(each) for each in reads], batch_size=most)


async def _read_bucket(
    fs: Any,
    reads: Sequence[R],
    alone: Callable[[R], Awaitable[None]],
    finished: Callable[[R], object],
    most: int | None,
) -> None:
    first, *rest = reads
    sent: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    latest: Any = None

    def note(request: Any, _: Any) -> None:
        nonlocal latest
        latest = request
        if not sent.done() and fs.reads_have_checksums is not None:
            sent.set_result(request)

    async def read_first() -> None:
        try:
            with using(sent=note):
                await alone(first)
        finally:  # now it is known whether the server refuses the headers that the others would have, too
            if not sent.done():
                sent.set_result(latest)

    async def read_rest() -> None:
        request = await sent  # the filesystem may not be connected before, or only its parent process is
        template = await fs.transfer.signer.read_template(request, first.key) if request else None
        if template is None:  # requests of a kind that botocore alone can make
            await _read_alone(rest, alone, most)
        else:
            signer = lambda: fs.transfer.signer  # noqa: E731
            await SignedReads(fs.transfer, template, rest, finished, alone, most, signer).run()

    await gather_or_cancel((read_first(), read_rest()))
