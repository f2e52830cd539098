"""Downloads: whole objects and ranges of them, to memory and local files, by parallel requests.

All requests of a read get the same state of the object: if it is replaced meanwhile, the read starts again, once.
Whole objects are verified by the server's checksum, if there is one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, coalesce
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
    head = head or FirstBytes(found)
    try:
        await _begin(fs, found, head)
        return await _read_rest(fs, found, head)
    finally:
        head.forget()  # an exception's traceback may keep it alive


async def _begin(fs: Any, found: PinnedObject, head: FirstBytes) -> None:
    """Read the first bytes of an object, unless they were read before."""
    if not head.filled:
        await fs.transfer.fetch(found.get, [head])
    found.etag = found.etag or head.etag


async def _size(fs: Any, found: PinnedObject, head: RangeRequest) -> int:
    """Return the size of an object; ask for it if the response for its first bytes did not give it."""
    if head.total is not None:
        return head.total
    info = await object_info(fs, f"{found.bucket}/{found.key}", found.version)
    if info["ETag"] != found.etag or info["size"] < head.length:
        raise FileExpired(str(found), found.etag)
    return int(info["size"])


async def _read_rest(fs: Any, found: PinnedObject, head: FirstBytes) -> bytes:
    if not head.cut_off:
        verify_checksum(found, head, head.memory, [])
        return head.value()
    total = await _size(fs, found, head)
    with BytesBuffer(total, found) as target:
        target.memory[: head.length] = head.memory
        rest = (head.length, target.memory[head.length :])
        ranges = coalesce([rest], fs.request_size(total), checksum_function(head))
        await fs.transfer.fetch(found.get, ranges)
        verify_checksum(found, head, head.memory, ranges)
        return target.getvalue(total)


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
    heads = [FirstBytes(rpath), head or FirstBytes(rpath)]  # the last is for the first try
    with atomic_local_write(lpath, exclusive=exclusive) as descriptor:
        await retry_if_changed(
            lambda: _fetch(fs, PinnedObject(fs, rpath, version_id), descriptor, heads.pop(), callback)
        )


async def _fetch(fs: Any, found: PinnedObject, descriptor: int, head: FirstBytes, callback: Callback) -> None:
    """Write an object to an open file."""
    try:
        await _begin(fs, found, head)
        await in_thread(write_at, descriptor, head.memory, 0)
    finally:
        head.forget()
    total = await _size(fs, found, head)
    callback.set_size(total)
    callback.absolute_update(head.length)
    part = fs.request_size(total)
    ranges = [
        FileRange(descriptor, start, min(part, total - start), check=checksum_function(head))
        for start in range(head.length, total, part)
    ]
    await fs.transfer.fetch(found.get, ranges, callback.relative_update)
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
    found = PinnedObject(fs, path, None)
    part, probe = fs.request_size(len(memory)), RangeRequest(0, probing=True)
    if start or len(memory) != size:
        ranges = coalesce([(start, memory)], part)
        await fs.transfer.fetch(found.get, ranges)
        total = ranges[0].total or size if ranges else size
    else:
        probe.add(0, 0, memory[:MIN_REQUEST])
        await fs.transfer.fetch(found.get, [probe])
        total = await _size(fs, found, probe)
        rest = memory[probe.length :] if total == size else memory[:0]
        ranges = coalesce([(probe.length, rest)], part, checksum_function(probe))
        await fs.transfer.fetch(found.get, ranges)
        if total == size:
            verify_checksum(found, probe, memory[: probe.length], ranges)
    for each in (probe, *ranges):
        each.forget_buffers()
    return total
