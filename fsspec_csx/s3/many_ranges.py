"""Reads of many ranges: one request for nearby ranges of an object, and requests that share a template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fsspec.utils import is_exception
from s3fs.utils import FileExpired

from fsspec_csx.s3.client.error_mapping import code_of
from fsspec_csx.s3.consistent_read import BytesBuffer, PinnedObject, retry_if_changed
from fsspec_csx.s3.download import cat_file
from fsspec_csx.s3.listing import object_info
from fsspec_csx.s3.many_objects import cat_files, is_not_overridden
from fsspec_csx.s3.many_requests import ObjectGet, run_requests
from fsspec_csx.s3.multipart import gather_or_cancel
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.range_planning import MIN_REQUEST, coalesce
from fsspec_csx.s3.transport.threads import in_thread_if_many


async def cat_ranges(
    fs: Any,
    paths: Sequence[str],
    starts: Any,
    ends: Any,
    max_gap: int | None = None,
    batch_size: int | None = None,
    on_error: str = "return",
    **kwargs: Any,
) -> list[Any]:
    """Return the bytes of many ranges of objects; one request reads nearby ranges of one object.

    Args:
        paths: one for each range.
        starts: position of the first byte of each range, or of all.
        ends: position after the last byte of each range, or of all.
        batch_size: how many requests at a time.
        on_error: "return" to put exceptions in the place of results; anything else raises the first.
    """
    starts = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
    ends = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
    if not len(paths) == len(starts) == len(ends):
        msg = f"There are {len(paths)} paths, {len(starts)} starts and {len(ends)} ends. Give as many of each."
        raise ValueError(msg)
    wanted: dict[str, list[int]] = {}
    for number, path in enumerate(paths):
        wanted.setdefault(path, []).append(number)
    spans = list(zip(starts, ends, strict=True))
    spans_of = {path: [spans[number] for number in numbers] for path, numbers in wanted.items()}
    found: dict[str, list[Any]] = {}

    async def read(path: str) -> None:
        try:
            found[path] = await retry_if_changed(lambda: _read_ranges(fs, path, spans_of[path], **kwargs))
        except Exception as error:
            found[path] = [error] * len(wanted[path])

    if len(wanted) > 1 and is_not_overridden(fs, "_cat_file", cat_file) and not kwargs:
        found = await _read_alike(fs, spans_of, batch_size)
    await gather_or_cancel([read(path) for path in wanted if path not in found])
    by_number = {number: data for path in wanted for number, data in zip(wanted[path], found[path], strict=True)}
    results = [by_number[number] for number in range(len(paths))]
    if on_error != "return" and (error := next(filter(is_exception, results), None)):
        raise error
    return results


async def _read_ranges(fs: Any, path: str, spans: list[tuple[Any, Any]], **kwargs: Any) -> list[Any]:
    """Read ranges of one state of an object."""
    if len(spans) == 1:
        return [await fs._cat_file(path, start=spans[0][0], end=spans[0][1], **kwargs)]
    info = await object_info(fs, path, kwargs.get("version_id") or fs.split_path(path)[2])
    ranges = await in_thread_if_many(len(spans), _Ranges, fs, path, spans, info, kwargs.get("version_id"))
    await fs.transfer.fetch(ranges.state.get, ranges.requests)
    return await in_thread_if_many(len(spans), ranges.values)


class _Ranges:
    """Ranges of one object.

    Args:
        spans: their start and end positions; small ones unless ``info`` is given.
        info: of the object, if it was looked up.

    Attributes:
        error: the first error of a read.
    """

    def __init__(
        self,
        fs: Any,
        path: str,
        spans: list[tuple[Any, Any]],
        info: Mapping[str, Any] | None = None,
        version_id: str | None = None,
    ) -> None:
        self.state = PinnedObject(fs, path, version_id, info.get("ETag") if info else None)
        self.error: Exception | None = None
        limits = [slice(*each).indices(info["size"])[:2] if info else each for each in spans]
        self._targets = [BytesBuffer(max(0, end - start), self.state) for start, end in limits]
        pairs = [(start, target.memory) for (start, _), target in zip(limits, self._targets, strict=True)]
        self.requests = coalesce(pairs, fs.request_size(sum(len(memory) for _, memory in pairs)))
        if len(pairs) == 1 and info is None:
            self.requests = [RangeRequest(limits[0][0], clipped=True)]
            self.requests[0].add(0, *pairs[0])

    def found(self) -> list[Any] | None:
        """Return the bytes or the error of each range; None if they must be read in another way.

        That is the case if the object was replaced meanwhile, or ends before a range does.
        """
        if self.error is not None:
            beyond = any(each.total is not None and each.end > each.total for each in self.requests)
            if beyond or isinstance(self.error, FileExpired) or code_of(self.error) in ("InvalidRange", "416"):
                return None
            return [self.error] * len(self._targets)
        if len({self.state.etag, *(each.etag for each in self.requests)} - {None}) > 1:
            return None
        return self.values()

    def values(self) -> list[bytes]:
        """Return the bytes of each range."""
        if len(self._targets) == 1:
            return [self._targets[0].getvalue(sum(each.length for each in self.requests))]
        return [each.getvalue() for each in self._targets]


async def _read_alike(fs: Any, spans: Mapping[str, list[tuple[Any, Any]]], most: int | None) -> dict[str, list[Any]]:
    """Read ranges of objects, each object in one state; leave out objects that must be read in another way."""
    await fs.set_session()
    found: dict[str, list[Any]] = {}
    whole = [path for path, each in spans.items() if each in ([(0, None)], [(None, None)])]
    found.update({path: [data] for path, data in zip(whole, await cat_files(fs, whole, most), strict=True)})
    objects: dict[str, _Ranges] = {}

    async def look_up(path: str) -> None:
        try:
            info = await object_info(fs, path, fs.split_path(path)[2])
            objects[path] = _Ranges(fs, path, spans[path], info)
        except Exception as error:
            found[path] = [error] * len(spans[path])

    unknown = []
    for path in spans.keys() - found.keys():
        if all(_is_small(*each) for each in spans[path]):
            objects[path] = _Ranges(fs, path, spans[path])
        else:
            unknown.append(look_up(path))
    await gather_or_cancel(unknown)
    wanted = [(each, request) for each in objects.values() for request in each.requests]

    async def alone(request: ObjectGet) -> None:
        each, one = wanted[request.number]
        try:
            if one.total is not None and one.end > one.total:
                msg = "The object ends before the range does."
                raise OSError(msg)
            await fs.transfer.fetch(each.state.get, [one])
        except Exception as error:
            each.error = each.error or error

    requests = [ObjectGet(each.state, request, bool, number) for number, (each, request) in enumerate(wanted)]
    await run_requests(fs, requests, alone, lambda _: None, most)
    found.update({path: data for path, each in objects.items() if (data := each.found()) is not None})
    return found


def _is_small(start: Any, end: Any) -> bool:
    return start is not None and end is not None and 0 <= start < end <= start + MIN_REQUEST
