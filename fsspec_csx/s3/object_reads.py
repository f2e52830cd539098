"""Reads of many objects straight into memory, in parallel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from fsspec_csx.s3.consistent_read import PinnedObject, checksum_function, retry_if_changed, verify_checksum
from fsspec_csx.s3.many_requests import ObjectGet, has_checksum, run_requests
from fsspec_csx.s3.multipart import gather_or_cancel
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, coalesce

ObjectRead: TypeAlias = tuple[str, int, memoryview, int]
"""The path of an object, the position of the first byte, the memory to fill, and the object's expected size in bytes.

The memory is writable, contiguous and of single bytes.
"""


# More than _MANY objects of up to _SMALL bytes are requested without botocore.
_SMALL, _MANY = 2**20, 16


async def readinto_objects(
    fs: Any, wanted: Sequence[ObjectRead], advance: Callable[[int], object] = lambda count: None
) -> list[int]:
    """Fill many memories from many objects; objects that are read whole are verified by their checksums.

    Args:
        wanted: in any order.
        advance: called on the event loop with the bytes read of each object.

    Returns:
        The actual size of each object in bytes, or its expected size if no bytes of it are wanted. Where the actual
        size is another than expected, the memory may be filled in part.

    Raises:
        ObjectNotFoundError: if an object does not exist.
        ChecksumError: if the bytes of an object fail verification by its checksum twice.
    """
    await fs.set_session()
    found: dict[int, int] = {}

    async def read(number: int) -> None:
        found[number] = await retry_if_changed(lambda: _readinto_object(fs, wanted[number]))
        advance(len(wanted[number][2]))

    small = [_small_read(fs, number, each) for number, each in enumerate(wanted) if len(each[2]) == each[3] <= _SMALL]
    if len(small) > _MANY:

        def finished(request: ObjectGet) -> None:
            body = request.body
            found[request.number] = body.length if body.total is None else body.total
            advance(len(wanted[request.number][2]))

        await run_requests(fs, small, lambda request: read(request.number), finished)
    await gather_or_cancel(read(number) for number in range(len(wanted)) if number not in found)
    return [found[number] for number in range(len(wanted))]


def _small_read(fs: Any, number: int, wanted: ObjectRead) -> ObjectGet:
    path, _, memory, _ = wanted
    state, request = PinnedObject(fs, path, None), RangeRequest(0, probing=True)
    request.add(0, 0, memory)
    check = lambda body: has_checksum(state, body, memory[: body.length])  # noqa: E731
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
