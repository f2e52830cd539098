"""BulkS3: whole objects and ranges of them, to and from memory and local files, several requests at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.utils import is_exception

from fsspec_csx.s3.client.error_mapping import code_of
from fsspec_csx.s3.consistent_read import BytesBuffer, PinnedObject, check, compute_of, retry_if_changed
from fsspec_csx.s3.copy import CopyingS3
from fsspec_csx.s3.interrupt import interruptible
from fsspec_csx.s3.multipart import gather_or_cancel
from fsspec_csx.s3.resumable_download import ResumableDownload
from fsspec_csx.s3.transport.byte_range import FileRange, RangeRequest
from fsspec_csx.s3.transport.call_scope import scope
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, coalesce, size_for
from fsspec_csx.storage.local_file import atomic_local_write


class BulkS3(CopyingS3):
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
            return await retry_if_changed(lambda: self._whole(PinnedObject(self, path, version_id)))
        return await retry_if_changed(lambda: self._part(path, PinnedObject(self, path, version_id), start or 0, end))

    async def _part(self, path: str, found: PinnedObject, start: int, end: int | None) -> bytes:
        if start < 0 or end is None or end < 0 or end - start > MIN_REQUEST:
            info = await self._object_info(path, found.version)
            start, end, _ = slice(start, end).indices(info["size"])
            found.etag = info.get("ETag")
        if end <= start:
            return b""
        await self.set_session()
        with BytesBuffer(end - start, found) as target:
            if end - start <= MIN_REQUEST:
                ranges = [RangeRequest(start, clipped=True)]
                ranges[0].add(0, start, target.memory)
            else:
                ranges = coalesce([(start, target.memory)], size_for(end - start, self.max_concurrency))
            try:
                await self.transfer.fetch(found.get, ranges)
            except OSError as error:
                if code_of(error) not in ("InvalidRange", "416"):
                    raise
                if start < (await self._object_info(path, found.version))["size"]:
                    raise
                return b""  # it begins behind the end
            return target.taken(sum(each.length for each in ranges))

    async def _whole(self, found: PinnedObject) -> bytes:
        await self.set_session()
        with BytesBuffer(MIN_REQUEST, found) as head:
            probe = RangeRequest(0, probing=True)
            probe.add(0, 0, head.memory)
            await self.transfer.fetch(found.get, [probe])
            total = probe.total or probe.length
            if probe.complete and not probe.cut_off:
                data = head.taken(probe.length)
                check(found, probe, memoryview(data), [])
                return data
            with BytesBuffer(total, found) as target:
                target.memory[: probe.length] = head.memory[: probe.length]
                rest = (probe.length, target.memory[probe.length :])
                ranges = coalesce([rest], size_for(total, self.max_concurrency), compute_of(probe))
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
                found = await retry_if_changed(lambda: self._spans(path, spans, **kwargs))
            except Exception as error:
                found = [error] * len(numbers)
            for number, data in zip(numbers, found, strict=True):
                results[number] = data

        await gather_or_cancel(read(path, numbers) for path, numbers in wanted.items())
        if on_error != "return" and (error := next(filter(is_exception, results), None)):
            raise error
        return results

    async def _spans(self, path: str, spans: list[tuple[Any, Any]], **kwargs: Any) -> list[Any]:
        if len(spans) == 1:
            return [await self._cat_file(path, start=spans[0][0], end=spans[0][1], **kwargs)]
        found = PinnedObject(self, path, kwargs.get("version_id"))
        info = await self._object_info(path, found.version)
        found.etag = info.get("ETag")
        limits = [slice(*span).indices(info["size"])[:2] for span in spans]
        with contextlib.ExitStack() as stack:
            targets = [stack.enter_context(BytesBuffer(max(0, end - start), found)) for start, end in limits]
            pairs = [(start, target.memory) for (start, _), target in zip(limits, targets, strict=True)]
            size = size_for(sum(len(memory) for _, memory in pairs), self.max_concurrency)
            await self.transfer.fetch(found.get, coalesce(pairs, size))
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
        scope().join()
        await self.set_session()
        exclusive = mode == "create"
        if resumable and await ResumableDownload(self, rpath, version_id, lpath, exclusive=exclusive).fetch(callback):
            return
        with atomic_local_write(lpath, exclusive=exclusive) as descriptor:

            async def fetch() -> None:
                found = PinnedObject(self, rpath, version_id)
                probe = FileRange(descriptor, 0, MIN_REQUEST, probing=True)
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

            await retry_if_changed(fetch)

    cat_file = interruptible(_cat_file)
    cat_ranges = interruptible(_cat_ranges)
    get_file = interruptible(_get_file)


def _check_inside(rpath: str, lpath: str) -> None:
    """Refuse a local path that leads upwards where the key does: whoever made the key chose it."""
    parts = str(rpath).split("/")
    if ".." in parts:
        upwards = "/".join(parts[parts.index("..") :])
        if str(lpath).replace(os.sep, "/").endswith(upwards):
            raise _leading_out(rpath)


def _leading_out(rpath: str) -> ValueError:
    msg = f"The key {rpath!r} leads out of the folder that it is fetched to. Fetch it alone, to a name of your own."
    return ValueError(msg)
