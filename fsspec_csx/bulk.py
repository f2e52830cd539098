"""BulkS3: whole objects and ranges of them, to and from memory and local files, several requests at a time."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.utils import is_exception
from s3fs.core import version_id_kw

from fsspec_csx.connection import ConnectedS3
from fsspec_csx.explain import code_of
from fsspec_csx.interrupt import interruptible
from fsspec_csx.localfile import replacing
from fsspec_csx.multipart import PARTS, Call, Upload, all_of, part_size_for, put
from fsspec_csx.payload import FilePart, Memories, Payload, single_bytes
from fsspec_csx.ranges import LEAST, FileRange, Range, planned, size_for
from fsspec_csx.whole import Bytes, ObjectState, check, compute_of, twice

# Copied by the server in one request, up to this size in bytes; larger objects in parts of this size or more.
_COPIED_WHOLE = 256 * 2**20
# What an object has besides its bytes, and a copy in parts must be told.
_HEADERS = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "ContentType",
    "Expires",
    "Metadata",
    "StorageClass",
    "WebsiteRedirectLocation",
)


class BulkS3(ConnectedS3):
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
                if code_of(error) in ("InvalidRange", "416"):
                    return b""  # it begins behind the end
                raise
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

    # -- from memory to S3 ------------------------------------------------------------------------------------------

    async def _pipe_file(
        self, path: str, data: Any, chunksize: int | None = None, mode: str = "overwrite", **kwargs: Any
    ) -> Any:
        """Make bytes an object.

        Args:
            data: any contiguous memory; a str is encoded as UTF-8.
            chunksize: bytes of a part; chosen by the size if not given.
            mode: "create" to replace no object.

        Raises:
            ObjectExistsError: in mode "create", if there is an object.
        """
        memory = single_bytes(data.encode() if isinstance(data, str) else data)
        return await self._send(path, len(memory), lambda a, b: Memories([memory[a:b]]), chunksize, mode, kwargs)

    async def _put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        chunksize: int | None = None,
        mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:
        """Make a local file an object; as ``_pipe_file``. A folder, which S3 does not know, only makes a bucket."""
        if os.path.isdir(lpath):
            if not self.split_path(rpath)[1]:
                await self._mkdir(rpath)
            return
        if guessed := mimetypes.guess_type(lpath)[0]:
            kwargs.setdefault("ContentType", guessed)
        with open(lpath, "rb") as file:
            descriptor = file.fileno()
            size = os.fstat(descriptor).st_size
            # A pipe and what the kernel makes up have no size before they are read.
            memory = memoryview(b"" if size else await asyncio.to_thread(file.read))
            size = size or len(memory)
            callback.set_size(size)

            def payload(start: int, end: int) -> Payload:
                return Memories([memory[start:end]]) if memory else FilePart(descriptor, start, end - start)

            await self._send(rpath, size, payload, chunksize, mode, kwargs, callback.relative_update)

    async def _send(
        self,
        path: str,
        size: int,
        payload: Callable[[int, int], Payload],
        part: int | None,
        mode: str,
        options: dict[str, Any],
        advance: Callable[[int], object] = lambda count: None,
    ) -> Any:
        """Make an object of payloads, each of the bytes between two positions."""
        options.pop("max_concurrency", None)
        bucket, key, _ = self.split_path(path)
        await self.set_session()
        call = self._caller(bucket, key, options)
        checked = not any(name.startswith("Checksum") for name in {**self.s3_additional_kwargs, **options})
        match = {"IfNoneMatch": "*"} if mode == "create" else {}
        part = max(part, -(-size // PARTS)) if part else part_size_for(size)
        if size <= part:
            answer = await put(call, self.transfer, payload(0, size), checked=checked, **match)
            advance(size)
            self.invalidate_cache(path)
            return answer

        async def send_part(number: int, start: int) -> None:
            await upload.send(number, payload(start, min(start + part, size)))
            advance(min(part, size - start))

        async with Upload(call, self.transfer, checked=checked) as upload:
            await upload.create()
            await all_of(send_part(number, start) for number, start in enumerate(range(0, size, part), 1))
            answer = await upload.complete(**match)
        self.invalidate_cache(path)
        return answer

    def _caller(self, bucket: str, key: str, options: dict[str, Any]) -> Call:
        async def call(method: str, **parameters: Any) -> Any:
            return await self._call_s3(method, options, Bucket=bucket, Key=key, **parameters)

        return call

    # -- from S3 to local files -------------------------------------------------------------------------------------

    async def _get_file(
        self,
        rpath: str,
        lpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        version_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Make an object a local file, which takes the place of a former one only when it is whole.

        Raises:
            ObjectNotFoundError: if there is no such object.
            ChecksumError: if what comes is not what the server holds, twice.
        """
        if os.path.isdir(lpath):
            return
        if os.path.exists(lpath) and not os.path.isfile(lpath):  # a pipe or a device is written from front to back
            await super()._get_file(rpath, lpath, callback=callback, version_id=version_id, max_concurrency=1)
            return
        await self.set_session()
        with replacing(lpath) as descriptor:

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

    async def _cp_file(self, path1: str, path2: str, preserve_etag: bool | None = None, **kwargs: Any) -> None:
        """Copy an object, by the server; a large one in parts, with its metadata.

        Args:
            preserve_etag: whether to copy the very parts that it was made of, so that its ETag stays.
        """
        source = ObjectState(self, self._strip_protocol(path1), None)
        if self.split_path(path2)[2]:
            msg = f"{path2!r} names a version, and versions cannot be written. Leave ?versionId= away."
            raise ValueError(msg)
        info = await self._info(path1, source.bucket, source.key, version_id=source.version)
        if info["size"] <= _COPIED_WHOLE or preserve_etag:
            await super()._cp_file(path1, path2, preserve_etag=preserve_etag, **kwargs)
            return
        version = version_id_kw(source.version)
        head = await self._call_s3("head_object", Bucket=source.bucket, Key=source.key, **version)
        size, etag = head["ContentLength"], head["ETag"]
        kept = {name: head[name] for name in _HEADERS if name in head}
        bucket, key, _ = self.split_path(path2)
        await self.set_session()
        call = self._caller(bucket, key, {**kept, **kwargs})
        origin = {"Bucket": source.bucket, "Key": source.key, **version}
        part = max(_COPIED_WHOLE, part_size_for(size))
        slots = asyncio.Semaphore(self.max_concurrency)

        async def copy_part(number: int, start: int) -> None:
            span = f"bytes={start}-{min(start + part, size) - 1}"
            async with slots:
                await upload.copy(number, CopySource=origin, CopySourceRange=span, CopySourceIfMatch=etag)

        async with Upload(call, self.transfer, checked=False) as upload:
            await upload.create()
            await all_of(copy_part(number, start) for number, start in enumerate(range(0, size, part), 1))
            await upload.complete()
        self.invalidate_cache(path2)

    cat_file = interruptible(_cat_file)
    cat_ranges = interruptible(_cat_ranges)
    pipe_file = interruptible(_pipe_file)
    put_file = interruptible(_put_file)
    get_file = interruptible(_get_file)
    cp_file = interruptible(_cp_file)
