"""Many objects read straight into memory, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from fsspec_csx.s3.consistent_read import PinnedObject, checksum_function, retry_if_changed, verify_checksum
from fsspec_csx.s3.many_requests import ObjectGet, has_checksum, make_alike
from fsspec_csx.s3.multipart import gather_or_cancel
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, coalesce

ObjectRead: TypeAlias = tuple[str, int, memoryview, int]
"""Bytes of an object and where they go.

The object's path, the position of the first byte, writable memory (contiguous, of single bytes), and the size in bytes
that the object must have.
"""


# Objects of no more bytes, and so many of them at least, are asked for in the quick way.
_SMALL, _MANY = 2**20, 16


async def readinto_objects(
    fs: Any, wanted: Sequence[ObjectRead], advance: Callable[[int], object] = lambda count: None
) -> list[int]:
    """Fill many memories from many objects; objects that are read whole are compared with their checksums.

    Args:
        wanted: in any order.
        advance: called on the event loop with the bytes read of each object.

    Returns:
        The size in bytes that each object has; the one that it must have if no bytes of it are wanted. Where it is
        not that one, the memory may have been filled in part.

    Raises:
        ObjectNotFoundError: if there is no such object.
        ChecksumError: if the bytes do not have the object's checksum, twice.
    """
    await fs.set_session()
    found: dict[int, int] = {}

    async def read(number: int) -> None:
        found[number] = await retry_if_changed(lambda: _readinto_object(fs, wanted[number]))
        advance(len(wanted[number][2]))

    small = [_small_read(fs, number, each) for number, each in enumerate(wanted) if len(each[2]) == each[3] <= _SMALL]
    if len(small) > _MANY:

        def finished(request: ObjectGet) -> None:
            came = request.body
            found[request.number] = came.length if came.total is None else came.total
            advance(len(wanted[request.number][2]))

        await make_alike(fs, small, lambda request: read(request.number), finished)
    await gather_or_cancel(read(number) for number in range(len(wanted)) if number not in found)
    return [found[number] for number in range(len(wanted))]


def _small_read(fs: Any, number: int, wanted: ObjectRead) -> ObjectGet:
    path, _, memory, _ = wanted
    state, request = PinnedObject(fs, path, None), RangeRequest(0, probing=True)
    request.add(0, 0, memory)
    check = lambda came: has_checksum(state, came, memory[: came.length])  # noqa: E731
    return ObjectGet(state, request, check, number)


async def _readinto_object(fs: Any, wanted: ObjectRead) -> int:
    path, start, memory, size = wanted
    found = PinnedObject(fs, path, None)
    part = fs.request_size(len(memory))
    if start or len(memory) != size:
        ranges = coalesce([(start, memory)], part)
        await fs.transfer.fetch(found.get, ranges)
        return ranges[0].total or size if ranges else size
    probe = RangeRequest(0, probing=True)
    probe.add(0, 0, memory[:MIN_REQUEST])
    await fs.transfer.fetch(found.get, [probe])
    total = probe.length if probe.total is None else probe.total
    if total == size:
        ranges = coalesce([(MIN_REQUEST, memory[MIN_REQUEST:])], part, checksum_function(probe))
        await fs.transfer.fetch(found.get, ranges)
        verify_checksum(found, probe, memory[:MIN_REQUEST], ranges)
    return total
