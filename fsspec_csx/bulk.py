"""BulkS3: whole objects and ranges of them, to and from memory and local files, several requests at a time."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.utils import is_exception
from s3fs.core import version_id_kw
from s3fs.utils import FileExpired

from fsspec_csx.checksum import CRC64NVME
from fsspec_csx.errors import ChecksumError
from fsspec_csx.explain import code_of
from fsspec_csx.interrupt import interruptible
from fsspec_csx.localfile import replacing
from fsspec_csx.multipart import Upload, all_of
from fsspec_csx.part_sizes import part_size_for
from fsspec_csx.partial import Resuming
from fsspec_csx.payload import Memories, Payload
from fsspec_csx.ranges import LEAST, FileRange, Range, planned, size_for
from fsspec_csx.record import Origin, recorded
from fsspec_csx.transfer import PART
from fsspec_csx.uploading import UploadingS3
from fsspec_csx.whole import Bytes, ObjectState, Stamp, check, compute_of, stamp_of, twice

# Copied by the server in one request, up to this size in bytes.
_COPIED_WHOLE = 256 * 2**20
# Larger ones in parts of so many bytes, or more: several are copied at a time, and a server that does not answer within
# read_timeout is asked again, though it may only be slow.
_COPIED_PART = 32 * 2**20
# What a copy by another server may not know.
_OWN_HEADERS = {"StorageClass", "WebsiteRedirectLocation"}
# Bytes of memory, at most, of parts that go from one server to another, unless one part has more.
_IN_MEMORY = 128 * 2**20


class BulkS3(UploadingS3):
    """Reads and writes of whole objects by parallel requests; the base of CSXFileSystem, of no use alone.

    A read that takes several requests is of one state of the object: if it is replaced meanwhile, the read begins
    anew, once. What came is compared with the checksum that the server tells of the object, where it does.
    """

    # -- from S3 to memory ------------------------------------------------------------------------------------------

    async def _cat_file(
        self,
        path: str,
        version_id: str | None = None,
        start: int | None = None,
        end: int | None = None,
        **kwargs: Any,
    ) -> bytes:
        """The bytes of an object, or of a range of it.

        Args:
            version_id: of a former version.
            start: position of the first byte; negative from the end.
            end: position behind the last one; negative from the end.

        Raises:
            ObjectNotFoundError: if there is no such object.
            ChecksumError: if what comes is not what the server holds, twice.
        """
        if start is None and end is None:
            return await twice(lambda again: self._whole(ObjectState(self, path, version_id)))
        return await twice(lambda again: self._part(path, ObjectState(self, path, version_id), start or 0, end, again))

    async def _part(self, path: str, found: ObjectState, start: int, end: int | None, refresh: bool) -> bytes:
        if start < 0 or end is None or end < 0 or end - start > LEAST:
            info = await self._info(path, refresh=refresh, version_id=found.version)
            start, end, _ = slice(start, end).indices(info["size"])
            found.etag = info.get("ETag")
        if end <= start:
            return b""
        await self.set_session()
        with Bytes(end - start) as target:
            if end - start <= LEAST:
                ranges = [Range(start, clipped=True)]
                ranges[0].add(0, start, target.memory)
            else:
                ranges = planned([(start, target.memory)], size_for(end - start, self.max_concurrency))
            try:
                await self.transfer.fetch(found.get, ranges)
            except OSError as error:
                if code_of(error) not in ("InvalidRange", "416"):
                    raise
                if start < (await self._info(path, refresh=True, version_id=found.version))["size"]:
                    raise
                return b""  # it begins behind the end
            return target.taken(sum(each.length for each in ranges))

    async def _whole(self, found: ObjectState) -> bytes:
        await self.set_session()
        with Bytes(LEAST) as head:
            probe = Range(0, probing=True)
            probe.add(0, 0, head.memory)
            await self.transfer.fetch(found.get, [probe])
            total = probe.total or probe.length
            if probe.complete and not probe.cut_off:
                data = head.taken(probe.length)
                check(found, probe, memoryview(data), [])
                return data
            with Bytes(total) as target:
                target.memory[: probe.length] = head.memory[: probe.length]
                rest = (probe.length, target.memory[probe.length :])
                ranges = planned([rest], size_for(total, self.max_concurrency), compute_of(probe))
                await self.transfer.fetch(found.get, ranges)
                check(found, probe, head.memory, ranges)
                return target.taken(total)

    async def _cat_ranges(
        self,
        paths: Sequence[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """The bytes of many ranges of objects; near ones of one object by one request.

        Args:
            paths: one for each range.
            starts: position of the first byte of each, or of all.
            ends: positions behind the last ones.
            on_error: "return" puts exceptions in the place of results, anything else raises the first.
        """
        starts = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
        ends = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            msg = f"There are {len(paths)} paths, {len(starts)} starts and {len(ends)} ends. Give as many of each."
            raise ValueError(msg)
        wanted: dict[str, list[int]] = {}
        for number, path in enumerate(paths):
            wanted.setdefault(path, []).append(number)
        results: list[Any] = [None] * len(paths)

        async def read(path: str, numbers: list[int]) -> None:
            spans = [(starts[number], ends[number]) for number in numbers]
            try:
                found = await twice(lambda again: self._spans(path, spans, refresh=again, **kwargs))
            except Exception as error:
                found = [error] * len(numbers)
            for number, data in zip(numbers, found, strict=True):
                results[number] = data

        await asyncio.gather(*(read(path, numbers) for path, numbers in wanted.items()))
        if on_error != "return" and (error := next(filter(is_exception, results), None)):
            raise error
        return results

    async def _spans(self, path: str, spans: list[tuple[Any, Any]], refresh: bool, **kwargs: Any) -> list[Any]:
        if len(spans) == 1:
            return [await self._cat_file(path, start=spans[0][0], end=spans[0][1], **kwargs)]
        found = ObjectState(self, path, kwargs.get("version_id"))
        info = await self._info(path, refresh=refresh, version_id=found.version)
        found.etag = info.get("ETag")
        limits = [slice(*span).indices(info["size"])[:2] for span in spans]
        with contextlib.ExitStack() as stack:
            targets = [stack.enter_context(Bytes(max(0, end - start))) for start, end in limits]
            pairs = [(start, target.memory) for (start, _), target in zip(limits, targets, strict=True)]
            size = size_for(sum(len(memory) for _, memory in pairs), self.max_concurrency)
            await self.transfer.fetch(found.get, planned(pairs, size))
            return [target.taken() for target in targets]

    # -- from S3 to local files -------------------------------------------------------------------------------------

    async def _get_file(
        self,
        rpath: str,
        lpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        version_id: str | None = None,
        mode: str = "overwrite",
        resumable: bool = False,
        **kwargs: Any,
    ) -> None:
        """Make an object a local file, which takes the place of a former one only when it is whole.

        Args:
            mode: "create" to replace no file.
            resumable: whether what has come of a large one stays beside it when this is broken off, and is gone on
                with when it is called again.

        Raises:
            FileExistsError: in mode "create", if there is a file.
            ObjectNotFoundError: if there is no such object.
            ChecksumError: if what comes is not what the server holds, twice.
            ValueError: if its key leads out of the folder that it is fetched to.
        """
        if os.path.isdir(lpath):
            return
        _check_inside(rpath, lpath)
        if os.path.exists(lpath) and not os.path.isfile(lpath):  # a pipe or a device is written from front to back
            await super()._get_file(rpath, lpath, callback=callback, version_id=version_id, max_concurrency=1)
            return
        await self.set_session()
        exclusive = mode == "create"
        if resumable and await Resuming(self, rpath, version_id, lpath, exclusive=exclusive).fetch(callback):
            return
        with replacing(lpath, exclusive=exclusive) as descriptor:

            async def fetch(again: bool) -> None:
                found = ObjectState(self, rpath, version_id)
                probe = FileRange(descriptor, 0, LEAST, probing=True)
                await self.transfer.fetch(found.get, [probe])
                total = probe.total or probe.length
                callback.set_size(total)
                callback.absolute_update(probe.length)
                part = size_for(total, self.max_concurrency)
                ranges = [
                    FileRange(descriptor, start, min(part, total - start), check=compute_of(probe))
                    for start in range(probe.length, total, part)
                ]
                await self.transfer.fetch(found.get, ranges, callback.relative_update)
                os.ftruncate(descriptor, total)  # a former state of the object may have been longer
                first = memoryview(os.pread(descriptor, probe.length, 0))
                check(found, probe, first, ranges)

            await twice(fetch)

    # -- from S3 to S3 ----------------------------------------------------------------------------------------------

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
        source: BulkS3,
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

    cat_file = interruptible(_cat_file)
    cat_ranges = interruptible(_cat_ranges)
    get_file = interruptible(_get_file)
    cp_file = interruptible(_cp_file)
    take_file = interruptible(_take_file)
    stamp = interruptible(_stamp)


def _check_inside(rpath: str, lpath: str) -> None:
    """Refuse a local path that leads upwards where the key does: whoever made the key chose it."""
    parts = str(rpath).split("/")
    if ".." not in parts:
        return
    upwards = "/".join(parts[parts.index("..") :])
    if str(lpath).replace(os.sep, "/").endswith(upwards):
        msg = f"The key {rpath!r} leads out of the folder that it is fetched to. Fetch it alone, to a name of your own."
        raise ValueError(msg)
