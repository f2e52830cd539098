"""Many small objects of one bucket: asked for as one of them was, each signed by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fsspec_csx.errors import ChecksumError
from fsspec_csx.s3.consistent_read import PinnedObject, verify_checksum
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.pool import Transfer
from fsspec_csx.s3.transport.request_context import using
from fsspec_csx.s3.transport.request_template import ReadTemplate
from fsspec_csx.s3.transport.signed_requests import SignedRead, SignedReads


@contextmanager
def recorded_requests() -> Iterator[list[Any]]:
    """A list of the GetObject requests that are sent within the block, as they were sent."""
    found: list[Any] = []
    with using(sent=lambda request, _: found.append(request)):
        yield found


async def read_small(
    transfer: Transfer,
    template: ReadTemplate,
    wanted: Sequence[tuple[int, PinnedObject, memoryview]],
    advance: Callable[[int], object],
) -> dict[int, int]:
    """Fill memories with whole objects.

    Args:
        transfer: whose threads and connections are used.
        template: makes the requests.
        wanted: a number, an object, and the memory for it; if the object has another size, it is filled in part.
        advance: called on the event loop with the bytes read of each object.

    Returns:
        The size of each object by its number. Those that did not come at once are left out.
    """
    found: dict[int, int] = {}
    reads = {_read(state, memory): (number, memory) for number, state, memory in wanted}

    def finished(read: SignedRead) -> None:
        number, memory = reads[read]
        found[number] = read.wanted.length if read.wanted.total is None else read.wanted.total
        advance(len(memory))

    async def failed(read: SignedRead) -> None:
        """Leave it to the caller."""

    await SignedReads(transfer, template, reads, finished, failed).run()
    return found


def _read(state: PinnedObject, memory: memoryview) -> SignedRead:
    def verified(wanted: RangeRequest) -> bool:
        try:
            verify_checksum(state, wanted, memory[: wanted.length], [])
        except ChecksumError:
            return False
        return True

    wanted = RangeRequest(0, probing=True)
    wanted.add(0, 0, memory)
    return SignedRead(state.key, wanted, verified)
