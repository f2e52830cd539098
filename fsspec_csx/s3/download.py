"""Downloads: whole objects and ranges of them, to memory and local files, by parallel requests.

All requests of a read get the same state of the object: if it is replaced meanwhile, the read starts again, once.
Whole objects are verified by the server's checksum, if there is one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from s3fs import S3FileSystem
from s3fs.utils import FileExpired

from fsspec_csx.s3.client.error_mapping import code_of
from fsspec_csx.s3.consistent_read import (
    BytesBuffer,
    PinnedObject,
    checksum_function,
    retry_if_changed,
    verify_checksum,
)
from fsspec_csx.s3.first_bytes import FirstBytes
from fsspec_csx.s3.listing import object_info
from fsspec_csx.s3.many_requests import ObjectGet, run_requests
from fsspec_csx.s3.multipart import gather_or_cancel
from fsspec_csx.s3.resumable_download import resume
from fsspec_csx.s3.transport.byte_range import FileRange, RangeRequest
from fsspec_csx.s3.transport.call_scope import scope
from fsspec_csx.s3.transport.checksum import matches
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, coalesce, first_share
from fsspec_csx.s3.transport.threads import in_thread
from fsspec_csx.storage.atomic import atomic_local_write, write_at

# More than _MANY objects of up to _SMALL bytes are read into memory by requests without botocore.
_SMALL, _MANY = 2**20, 16
ObjectRead: TypeAlias = tuple[str, int, memoryview, int]
"""The path of an object, the position of the first byte, the memory to fill, and the object's expected size in bytes.

The memory is writable, contiguous and of single bytes.
"""


async def cat_file(
    fs: Any,
    path: str,
    version_id: str | None = None,
    start: int | None = None,
    end: int | None = None,
    **kwargs: Any,
) -> bytes:
    """Return the bytes of an object, or of a range of it.

    Args:
        version_id: the version to read, instead of the current one.
        start: position of the first byte; negative from the end.
        end: position after the last byte; negative from the end.

    Raises:
        ObjectNotFoundError: if the object does not exist.
        ChecksumError: if the bytes fail verification by the object's checksum twice.
    """
    if start is None and end is None:
        return await retry_if_changed(lambda: read_whole(fs, PinnedObject(fs, path, version_id)))
    return await retry_if_changed(lambda: _read_range(fs, path, PinnedObject(fs, path, version_id), start or 0, end))


async def _read_range(fs: Any, path: str, found: PinnedObject, start: int, end: int | None) -> bytes:
    if start < 0 or end is None or end < 0 or end - start > MIN_REQUEST:
        info = await object_info(fs, path, found.version)
        start, end, _ = slice(start, end).indices(info["size"])
        found.etag = info.get("ETag")
    if end <= start:
        return b""
    await fs.set_session()
    with BytesBuffer(end - start, found) as target:
        if end - start <= MIN_REQUEST:
            ranges = [RangeRequest(start, clipped=True)]
            ranges[0].add(0, start, target.memory)
        else:
            ranges = coalesce([(start, target.memory)], fs.request_size(end - start))
        try:
            await fs.transfer.fetch(found.get, ranges)
        except OSError as error:
            if code_of(error) not in ("InvalidRange", "416"):
                raise
            if start < (await object_info(fs, path, found.version))["size"]:
                raise
            return b""  # the range begins after the end
        return target.getvalue(sum(each.length for each in ranges))


async def read_whole(fs: Any, found: PinnedObject, head: FirstBytes | None = None) -> bytes:
    """Return the bytes of an object; ``head`` holds its first bytes, if they were read before."""
    await fs.set_session()
    first, target = head or FirstBytes(found, fs.request_size), None

    def plan(total: int) -> list[RangeRequest]:
        nonlocal target
        if total == first.length:
            return []
        target = BytesBuffer(total, found)
        rest = (first.length, target.memory[first.length :])
        return coalesce([rest], fs.request_size(total), checksum_function(first))

    try:
        total, ranges = await _fetch_whole(fs, found, first, plan)
        verify_checksum(found, first, first.memory, ranges)
        if target is None:
            return first.value()
        target.memory[: first.length] = first.memory
        return target.getvalue(total)
    finally:
        first.forget()  # an exception's traceback may keep it alive


async def _fetch_whole(
    fs: Any,
    found: PinnedObject,
    first: RangeRequest,
    plan: Callable[[int], list[RangeRequest]],
    store: Callable[[], Awaitable[object]] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> tuple[int, list[RangeRequest]]:
    """Fetch an object: its other bytes as soon as the response for the first ones has begun, which gives its size.

    Args:
        first: the request for the first bytes; it may have been made before.
        plan: returns the requests for the other bytes, given the object's size; there may be none.
        store: called when the first bytes have arrived.
        advance: called on the event loop with the length of each of the other requests that has ended.

    Returns:
        The object's size in bytes, and the other requests.
    """
    scope().join()
    loop, sized = asyncio.get_running_loop(), asyncio.Event()
    first.announce = lambda: loop.call_soon_threadsafe(sized.set)
    total, ranges, state = 0, list[RangeRequest](), (first.etag, first.end)

    async def fetch_first() -> None:
        if not first.filled:
            await fs.transfer.fetch(found.get, [first])
        if store is not None:
            await store()
        sized.set()

    async def fetch_others() -> None:
        nonlocal total, ranges, state
        await sized.wait()
        found.etag, state = found.etag or first.etag, (first.etag, first.end)
        total = await _size(fs, found, first)
        ranges = plan(total)
        await fs.transfer.fetch(found.get, ranges, advance)

    await gather_or_cancel([fetch_first(), fetch_others()])
    if state != (first.etag, first.end):  # by a second attempt, after the others had begun
        raise FileExpired(str(found), found.etag)
    return total, ranges


async def _size(fs: Any, found: PinnedObject, head: RangeRequest) -> int:
    """Return the size of an object; ask for it if the response for its first bytes did not give it."""
    if head.total is not None:
        return head.total
    info = await object_info(fs, f"{found.bucket}/{found.key}", found.version)
    if info["ETag"] != found.etag or info["size"] < head.length:
        raise FileExpired(str(found), found.etag)
    return int(info["size"])


async def get_file(
    fs: Any,
    rpath: str,
    lpath: str,
    callback: Callback = DEFAULT_CALLBACK,
    version_id: str | None = None,
    mode: str = "overwrite",
    resumable: bool = False,
    head: FirstBytes | None = None,
    **kwargs: Any,
) -> None:
    """Download an object to a local file, which replaces a former one only when it is complete.

    Args:
        mode: "create" to refuse to replace a file.
        resumable: whether to keep an interrupted download of a large object, so that the next call resumes it.
        head: the first bytes of the object, if they were read before.

    Raises:
        FileExistsError: in mode "create", if the file exists.
        ObjectNotFoundError: if the object does not exist.
        ChecksumError: if the bytes fail verification by the object's checksum twice.
        ValueError: if the key leads out of the target folder.
    """
    if os.path.isdir(lpath):
        return
    check_inside(rpath, lpath)
    if os.path.exists(lpath) and not os.path.isfile(lpath):  # pipes and devices are written sequentially
        await S3FileSystem._get_file(fs, rpath, lpath, callback=callback, version_id=version_id, max_concurrency=1)
        return
    scope().join()
    await fs.set_session()
    lpath, exclusive = os.path.realpath(lpath), mode == "create"  # links to folders may change during a download
    if resumable and await resume(fs, rpath, version_id, lpath, callback, exclusive=exclusive):
        return
    # The last is for the first try.
    heads = [FirstBytes(rpath, fs.request_size), head or FirstBytes(rpath, fs.request_size)]
    with atomic_local_write(lpath, exclusive=exclusive) as descriptor:
        await retry_if_changed(
            lambda: _fetch(fs, PinnedObject(fs, rpath, version_id), descriptor, heads.pop(), callback)
        )


async def _fetch(fs: Any, found: PinnedObject, descriptor: int, head: FirstBytes, callback: Callback) -> None:
    """Write an object to an open file."""

    def plan(total: int) -> list[RangeRequest]:
        callback.set_size(total)
        callback.absolute_update(0)
        part = fs.request_size(total)
        return [
            FileRange(descriptor, start, min(part, total - start), check=checksum_function(head))
            for start in range(head.length, total, part)
        ]

    async def store() -> None:
        await in_thread(write_at, descriptor, head.memory, 0)
        head.forget()

    try:
        total, ranges = await _fetch_whole(fs, found, head, plan, store, callback.relative_update)
    finally:
        head.forget()
    callback.relative_update(head.length)
    os.ftruncate(descriptor, total)  # a former state of the object may have been longer
    verify_checksum(found, head, memoryview(os.pread(descriptor, head.length, 0)), ranges)


def check_inside(rpath: str, lpath: str) -> None:
    """Refuse a local path that leads upwards because of ``..`` in the key: another person may have chosen the key."""
    parts = str(rpath).split("/")
    for number, part in enumerate(parts):
        if part == ".." and str(lpath).endswith("/".join(parts[number:])):
            msg = f"The key {rpath!r} leads out of the target folder. Fetch it alone, to a name of your choice."
            raise ValueError(msg)


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

    small = [number for number, each in enumerate(wanted) if len(each[2]) == each[3] <= _SMALL]
    if len(small) > _MANY:

        def finished(request: ObjectGet) -> None:
            body = request.body
            found[request.number] = body.length if body.total is None else body.total
            body.forget_buffers()
            advance(len(wanted[request.number][2]))

        requests = [_small_read(fs, number, wanted[number]) for number in small]
        await run_requests(fs, requests, lambda request: read(request.number), finished)
    await gather_or_cancel(read(number) for number in range(len(wanted)) if number not in found)
    return [found[number] for number in range(len(wanted))]


def _small_read(fs: Any, number: int, wanted: ObjectRead) -> ObjectGet:
    path, _, memory, _ = wanted
    state, request = PinnedObject(fs, path, None), RangeRequest(0, probing=True)
    request.add(0, 0, memory)
    check = lambda body: not body.unsized and matches(body.headers, memory[: body.length])  # noqa: E731
    return ObjectGet(state, request, check, number)


async def _readinto_object(fs: Any, wanted: ObjectRead) -> int:
    path, start, memory, size = wanted
    found, part = PinnedObject(fs, path, None), fs.request_size(len(memory))
    if start or len(memory) != size:
        ranges = coalesce([(start, memory)], part)
        await fs.transfer.fetch(found.get, ranges)
        total = ranges[0].total or size if ranges else size
    else:
        first = RangeRequest(0, probing=True)
        first.add(0, 0, memory[: first_share(size, part)])

        def plan(total: int) -> list[RangeRequest]:
            rest = memory[first.length :] if total == size else memory[:0]
            return coalesce([(first.length, rest)], part, checksum_function(first))

        total, ranges = await _fetch_whole(fs, found, first, plan)
        if total == size:
            verify_checksum(found, first, memory[: first.length], ranges)
        ranges = [first, *ranges]
    for each in ranges:
        each.forget_buffers()
    return total
