"""CopyingS3: objects copied by the server, or through this machine's memory from one server to another."""

from __future__ import annotations

import asyncio
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from s3fs.core import version_id_kw
from s3fs.utils import FileExpired

from fsspec_csx.checksum import CRC64NVME
from fsspec_csx.errors import ChecksumError
from fsspec_csx.interrupt import interruptible
from fsspec_csx.multipart import Upload, all_of
from fsspec_csx.part_sizes import part_size_for
from fsspec_csx.payload import Memories, Payload
from fsspec_csx.planning import planned
from fsspec_csx.record import Origin, recorded
from fsspec_csx.transfer import PART
from fsspec_csx.uploading import UploadingS3
from fsspec_csx.whole import ObjectState, Stamp, stamp_of

# Copied by the server in one request, up to this size in bytes.
_COPIED_WHOLE = 256 * 2**20
# Larger ones in parts of so many bytes, or more: several are copied at a time, and a server that does not answer within
# read_timeout is asked again, though it may only be slow.
_COPIED_PART = 32 * 2**20
# What a copy by another server may not know.
_OWN_HEADERS = {"StorageClass", "WebsiteRedirectLocation"}
# Bytes of memory, at most, of parts that go from one server to another, unless one part has more.
_IN_MEMORY = 128 * 2**20


class CopyingS3(UploadingS3):
    """Copies of whole objects; the base of CSXFileSystem, of no use alone."""

    async def _cp_file(
        self,
        path1: str,
        path2: str,
        preserve_etag: bool | None = None,
        callback: Callback = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        resumable: bool = False,
        **kwargs: Any,
    ) -> None:
        """Copy an object, by the server; a large one in parts, with its metadata.

        Args:
            preserve_etag: whether to copy the very parts that it was made of, so that its ETag stays.
            mode: "create" to replace no object by a large one.
            resumable: whether a copy in parts that is broken off stays, and is gone on with when this is called again.

        Raises:
            ObjectExistsError: in mode "create", if there is an object.
        """
        origin = ObjectState(self, self._strip_protocol(path1), None)
        if self.split_path(path2)[2]:
            msg = f"{path2!r} names a version, and versions cannot be written. Leave ?versionId= away."
            raise ValueError(msg)
        info = await self._info(path1, origin.bucket, origin.key, version_id=origin.version)
        if info["size"] <= _COPIED_WHOLE or preserve_etag:
            await super()._cp_file(path1, path2, preserve_etag=preserve_etag, **kwargs)
            callback.relative_update(info["size"])
            return
        stamp = await stamp_of(self, path1)
        bucket, key, _ = self.split_path(path2)
        call = self._caller(bucket, key, {**stamp.headers, **kwargs})
        source = {"Bucket": origin.bucket, "Key": origin.key, **version_id_kw(origin.version)}
        slots = asyncio.Semaphore(self.max_concurrency)

        async def copy_part(number: int, start: int) -> None:
            end = min(start + part, stamp.size)
            async with slots:
                kept = upload.kept.get(number)
                if kept is not None and kept.length == end - start:
                    upload.keep(number)
                else:
                    span = {"CopySourceRange": f"bytes={start}-{end - 1}", "CopySourceIfMatch": stamp.etag}
                    await upload.copy(number, CopySource=source, **span)
            callback.relative_update(end - start)

        known = Origin(f"{self._endpoint} {path1}", f"{stamp.etag} {stamp.size}") if resumable else None
        with recorded(known, f"{self._endpoint} {path2}") as record:
            async with Upload(call, self.transfer, checked=False, record=record) as upload:
                part = await upload.begin(max(min(_COPIED_PART, _COPIED_WHOLE), part_size_for(stamp.size)))
                await all_of(copy_part(number, start) for number, start in enumerate(range(0, stamp.size, part), 1))
                await upload.complete(**({"IfNoneMatch": "*"} if mode == "create" else {}))
        self.invalidate_cache(path2)

    async def _take_file(
        self,
        source: CopyingS3,
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
            resumable: whether an upload that is broken off stays, and is gone on with when this is called again.

        Raises:
            ChecksumError: if what came is not what the other server holds.
            s3fs.utils.FileExpired: an OSError, if the object was replaced meanwhile.
        """
        stamp = await stamp_of(source, rpath)
        found = ObjectState(source, rpath, None)
        found.etag = stamp.etag or None
        callback.set_size(stamp.size)

        async def payload(start: int, end: int) -> Payload:
            if end - start == stamp.size:
                data = await source._cat_file(rpath)  # it compares the checksum of all
                if len(data) != stamp.size:
                    raise FileExpired(str(found), stamp.etag)
                return Memories([memoryview(data)])
            memory = memoryview(bytearray(end - start))
            await source.transfer.fetch(found.get, planned([(start, memory)], PART))
            return Memories([memory])

        def unharmed(checksum: int | None) -> None:
            if checksum is not None and stamp.algorithm is CRC64NVME and CRC64NVME.encoded(checksum) != stamp.checksum:
                reason = f"What came of {found} has another checksum than {stamp.checksum}, which the server tells."
                remedy = "Copy it again; if that does not help, the network or the server damages data."
                raise ChecksumError(reason, remedy)

        options = {name: value for name, value in stamp.headers.items() if name not in _OWN_HEADERS}
        origin = Origin(f"{source._endpoint} {rpath}", f"{stamp.etag} {stamp.size}") if resumable else None
        more: dict[str, Any] = {"in_memory": _IN_MEMORY, "origin": origin, "ready": unharmed}
        await self._send(path, stamp.size, payload, None, mode, options, callback.relative_update, **more)

    async def _stamp(self, path: str) -> Stamp:
        """What the server tells of an object now."""
        return await stamp_of(self, path)

    cp_file = interruptible(_cp_file)
    take_file = interruptible(_take_file)
    stamp = interruptible(_stamp)
