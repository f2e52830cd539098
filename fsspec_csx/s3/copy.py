"""Copies through this machine's memory, from one server to another."""

from __future__ import annotations

from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from s3fs.utils import FileExpired

from fsspec_csx.s3.consistent_read import PinnedObject, compare_checksum, object_metadata
from fsspec_csx.s3.transport.checksum import CRC64NVME
from fsspec_csx.s3.transport.pool import PART
from fsspec_csx.s3.transport.request_body import MemoryBody, RequestBody
from fsspec_csx.s3.upload import send_object
from fsspec_csx.s3.upload_journal import SourceFingerprint

# What a copy by another server may not know.
_OWN_HEADERS = {"StorageClass", "WebsiteRedirectLocation"}
# Bytes of memory, at most, of parts that go from one server to another, unless one part has more.
_IN_MEMORY = 128 * 2**20


async def take_file(
    fs: Any,
    source: Any,
    rpath: str,
    path: str,
    callback: Callback = DEFAULT_CALLBACK,
    mode: str = "overwrite",
    resumable: bool = False,
) -> None:
    """Copy an object of another server, or that other credentials may read, through this machine's memory.

    Args:
        source: the filesystem that it is on.
        rpath: the path there.
        path: the path here.
        mode: "create" to replace no object.
        resumable: whether an interrupted upload is kept, to be resumed when this is called again.

    Raises:
        ChecksumError: if what came is not what the other server holds.
        s3fs.utils.FileExpired: an OSError, if the object was replaced meanwhile.
    """
    metadata = await object_metadata(source, rpath)
    found = PinnedObject(source, rpath, None, metadata.etag)
    callback.set_size(metadata.size)

    async def payload(start: int, end: int) -> RequestBody:
        if end - start == metadata.size:
            data = await source._cat_file(rpath)  # it compares the checksum of all
            if len(data) != metadata.size:
                raise FileExpired(str(found), metadata.etag)
            return MemoryBody([memoryview(data)])
        memory = memoryview(bytearray(end - start))
        await found.fill(memory, start, PART)
        return MemoryBody([memory])

    def verify(checksum: int | None) -> None:
        if checksum is not None and metadata.algorithm is CRC64NVME:
            compare_checksum(found, CRC64NVME, checksum, metadata.checksum)

    options = {name: value for name, value in metadata.headers.items() if name not in _OWN_HEADERS}
    origin = SourceFingerprint(f"{source._endpoint} {rpath}", f"{metadata.etag} {metadata.size}") if resumable else None
    more: dict[str, Any] = {"in_memory": _IN_MEMORY, "origin": origin, "ready": verify}
    await send_object(fs, path, metadata.size, payload, None, mode, options, callback.relative_update, **more)
