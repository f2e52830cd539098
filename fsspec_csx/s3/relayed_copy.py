"""Copies from one server to another, through this machine's memory."""

from __future__ import annotations

from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from fsspec_csx.s3.consistent_read import PinnedObject, compare_checksum, object_metadata
from fsspec_csx.s3.download import read_whole
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.request_body import MemoryBody, RequestBody
from fsspec_csx.s3.transport.transfer import PART
from fsspec_csx.s3.upload import send_object
from fsspec_csx.s3.upload_journal import SourceFingerprint

# Attributes that the other server may not support.
_OWN_HEADERS = {"StorageClass", "WebsiteRedirectLocation"}


async def take_file(
    fs: Any,
    source: Any,
    rpath: str,
    path: str,
    callback: Callback = DEFAULT_CALLBACK,
    mode: str = "overwrite",
    resumable: bool = False,
) -> None:
    """Copy an object from another server, or one that only other credentials can read, through local memory.

    Args:
        source: the filesystem of the object.
        rpath: the path in ``source``.
        path: the path in ``fs``.
        mode: "create" to refuse to replace an object.
        resumable: whether to keep an interrupted upload, so that the next call resumes it.

    Raises:
        ChecksumError: if the bytes received differ from the source's checksum.
        s3fs.utils.FileExpired: an OSError, if the source was replaced meanwhile.
    """
    metadata = await object_metadata(source, rpath)
    found = PinnedObject(source, rpath, None, metadata.etag)
    callback.set_size(metadata.size)

    async def payload(start: int, end: int) -> RequestBody:
        if end - start == metadata.size:
            return MemoryBody([memoryview(await read_whole(source, found))])
        memory = memoryview(bytearray(end - start))
        await found.fill(memory, start, PART)
        return MemoryBody([memory])

    def verify(checksum: int | None) -> None:
        if checksum is not None and metadata.algorithm is CRC64NVME:
            compare_checksum(found, CRC64NVME, checksum, metadata.checksum)

    options = {name: value for name, value in metadata.headers.items() if name not in _OWN_HEADERS}
    origin = SourceFingerprint(f"{source._endpoint} {rpath}", f"{metadata.etag} {metadata.size}") if resumable else None
    more: dict[str, Any] = {"elsewhere": True, "origin": origin, "ready": verify}
    await send_object(fs, path, metadata.size, payload, None, mode, options, callback.relative_update, **more)
