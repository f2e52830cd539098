"""Downloads: whole objects and ranges of them, to memory and local files, by parallel requests.

All requests of a read get the same state of the object: if it is replaced meanwhile, the read starts again, once.
Whole objects are verified by the server's checksum, if there is one.
"""

from __future__ import annotations

import os
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from s3fs import S3FileSystem

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
from fsspec_csx.s3.resumable_download import resume
from fsspec_csx.s3.transport.byte_range import FileRange, RangeRequest
from fsspec_csx.s3.transport.call_scope import scope
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, coalesce
from fsspec_csx.storage.local_file import atomic_local_write, write_at


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
    begun, head = head is not None, head or FirstBytes(found)
    try:
        if not begun:
            await fs.transfer.fetch(found.get, [head])
        return await _rest_of(fs, found, head)
    finally:
        head.forget()  # an exception's traceback may keep it alive


async def _rest_of(fs: Any, found: PinnedObject, head: FirstBytes) -> bytes:
    found.etag = found.etag or head.etag
    if not head.cut_off:
        verify_checksum(found, head, head.memory, [])
        return head.value()
    total = head.total or head.length
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
    heads = [] if head is None else [head]
    with atomic_local_write(lpath, exclusive=exclusive) as descriptor:
        await retry_if_changed(
            lambda: _fetch(
                fs, PinnedObject(fs, rpath, version_id), descriptor, heads.pop() if heads else None, callback
            )
        )


async def _fetch(fs: Any, found: PinnedObject, descriptor: int, head: FirstBytes | None, callback: Callback) -> None:
    """Write an object to an open file."""
    probe: RangeRequest = head or FileRange(descriptor, 0, MIN_REQUEST, probing=True)
    if head is not None:
        write_at(descriptor, head.memory, 0)
        head.forget()
    else:
        await fs.transfer.fetch(found.get, [probe])
    found.etag = found.etag or probe.etag
    total = probe.total or probe.length
    callback.set_size(total)
    callback.absolute_update(probe.length)
    part = fs.request_size(total)
    ranges = [
        FileRange(descriptor, start, min(part, total - start), check=checksum_function(probe))
        for start in range(probe.length, total, part)
    ]
    await fs.transfer.fetch(found.get, ranges, callback.relative_update)
    os.ftruncate(descriptor, total)  # a former state of the object may have been longer
    verify_checksum(found, probe, memoryview(os.pread(descriptor, probe.length, 0)), ranges)


def check_inside(rpath: str, lpath: str) -> None:
    """Refuse a local path that leads upwards because of ``..`` in the key: another person may have chosen the key."""
    parts = str(rpath).split("/")
    if ".." in parts:
        upwards = "/".join(parts[parts.index("..") :])
        if str(lpath).endswith(upwards):
            msg = f"The key {rpath!r} leads out of the folder it is fetched to. Fetch it alone, to a name of your own."
            raise ValueError(msg)
