"""Transfers of many objects from and to memory and local files, by requests that share a template."""

from __future__ import annotations

import functools
import mimetypes
import os
import stat
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fsspec.callbacks import Callback

from fsspec_csx.s3 import upload
from fsspec_csx.s3.consistent_read import PinnedObject, retry_if_changed
from fsspec_csx.s3.download import read_whole
from fsspec_csx.s3.first_bytes import FirstBytes, HeadFile
from fsspec_csx.s3.many_requests import ObjectGet, ObjectPut, run_requests
from fsspec_csx.s3.part_sizes import part_size_for
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.checksum import matches
from fsspec_csx.s3.transport.request_body import MemoryBody, RequestBody, file_body, single_bytes

Options: TypeAlias = Mapping[str, Any]

# Whether a source is small, and a function that makes its body.
_Source: TypeAlias = tuple[bool, Callable[[], RequestBody | None]]


def is_not_overridden(fs: Any, name: str, function: Callable[..., Any]) -> bool:
    """Return whether a method of a filesystem is this function; a subclass may override how it reads objects."""
    return getattr(type(fs), name) is function and name not in vars(fs)


async def cat_files(fs: Any, paths: Sequence[str], most: int | None = None) -> list[Any]:
    """Return the bytes, or the exception, of each of many objects; read at most ``most`` at a time."""
    results: list[Any] = [None] * len(paths)

    async def alone(request: HeadRequest) -> None:
        try:
            path = paths[request.number]
            results[request.number] = await retry_if_changed(
                lambda: read_whole(fs, PinnedObject(fs, path, None), request.begun())
            )
        except Exception as error:
            results[request.number] = error

    def finished(request: HeadRequest) -> None:
        results[request.number] = request.head.value()

    await _read(fs, [HeadRequest(fs, *each) for each in enumerate(paths)], alone, finished, most)
    return results


async def get_files(
    fs: Any,
    pairs: Sequence[tuple[str, str]],
    alone: Callable[..., Awaitable[None]],
    callback: Callback,
    most: int | None,
) -> None:
    """Download many objects to local files; see ``get_file``.

    Args:
        pairs: of objects and files.
        alone: downloads one by its number; it takes the first bytes of the object, if they were read.
        callback: counts the files.
        most: how many at a time.
    """

    def is_writable(number: int) -> bool:
        target = pairs[number][1]
        try:
            mode = os.lstat(target).st_mode
        except (OSError, ValueError):  # nothing is there, or opening the file raises the error
            return True
        return os.path.isfile(target) if stat.S_ISLNK(mode) else stat.S_ISREG(mode)  # not a folder, pipe or device

    async def fetch(request: HeadRequest) -> None:
        try:
            await alone(request.number, request.begun())
        finally:
            callback.relative_update(1)

    def finished(request: HeadRequest) -> None:
        _count(callback, pairs[request.number], request.head.length)

    heads = [
        HeadFile(path, fs.request_size, to, functools.partial(is_writable, n)) for n, (path, to) in enumerate(pairs)
    ]
    requests = [HeadRequest(fs, number, path, heads[number]) for number, (path, _) in enumerate(pairs)]
    await _read(fs, requests, fetch, finished, most)


async def pipe_files(
    fs: Any, contents: Mapping[str, Any], alone: Callable[[str], Awaitable[Any]], options: Options, most: int | None
) -> list[Any]:
    """Write bytes to many objects, and return the server's answers; see ``pipe_file``.

    Args:
        alone: writes one.
        options: of the call.
        most: how many at a time.
    """
    names, answers = list(contents), dict.fromkeys(contents)

    def source(number: int, limit: int) -> _Source:
        value = contents[names[number]]
        memory = single_bytes(value.encode() if isinstance(value, str) else value)
        return len(memory) <= limit, lambda: MemoryBody([memory])

    async def pipe(request: ObjectPut) -> None:
        answers[names[request.number]] = await alone(names[request.number])

    def finished(request: ObjectPut) -> None:
        answers[names[request.number]] = request.answer

    ours = is_not_overridden(fs, "_pipe_file", upload.pipe_file)
    await _write(fs, names, source if ours else None, lambda _: None, options, pipe, finished, most)
    return list(answers.values())


async def put_files(
    fs: Any,
    files: Sequence[tuple[str, str, os.stat_result | None]],
    alone: Callable[[int], Awaitable[Any]],
    callback: Callback,
    options: Options,
    most: int | None,
) -> None:
    """Upload many local files; see ``put_file``.

    Args:
        files: the path of each, the object to write, and the status of the file; None if it has none.
        alone: uploads one by its number.
        callback: counts the files.
        options: of the call.
        most: how many at a time.
    """

    def source(number: int, limit: int) -> _Source:
        path, _, status = files[number]
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            return False, lambda: None
        return True, functools.partial(file_body, path, status.st_size)

    async def put(request: ObjectPut) -> None:
        try:
            await alone(request.number)
        finally:
            callback.relative_update(1)

    def finished(request: ObjectPut) -> None:
        _count(callback, files[request.number][:2], request.length, **options)

    ours = is_not_overridden(fs, "_put_file", upload.put_file)
    kind = lambda number: mimetypes.guess_type(files[number][0])[0]  # noqa: E731
    await _write(fs, [each[1] for each in files], source if ours else None, kind, options, put, finished, most)


def _count(callback: Callback, pair: tuple[str, str], length: int, **options: Any) -> None:
    """Report a file that was transferred."""
    with callback.branched(*pair, **options) as child:
        child.set_size(length)
        child.relative_update(length)
    callback.relative_update(1)


async def _write(
    fs: Any,
    paths: Sequence[str],
    source: Callable[[int, int], _Source] | None,
    kind: Callable[[int], str | None],
    options: Options,
    *how: Any,
) -> None:
    extra, limit = {**fs.s3_additional_kwargs, **options}, part_size_for(0, options.get("chunksize"))
    usual = options.get("mode", "overwrite") == "overwrite" and not options.get("resumable") and not fs._intrans
    # Repeating a conditional request could fail because of the object that its first attempt created.
    usual = usual and not any(name.startswith(("If", "Checksum")) for name in extra)

    def content_type(number: int) -> str | None:
        found = None if "ContentType" in options else kind(number)
        return found or extra.get("ContentType")

    def request(number: int) -> ObjectPut:
        bucket, key, _ = fs.split_path(paths[number])
        small, body = source(number, limit) if usual and source else (False, lambda: None)
        return ObjectPut(bucket if small and key else None, key, functools.partial(content_type, number), body, number)

    try:
        await run_requests(fs, [request(number) for number in range(len(paths))], *how)
    finally:
        for path in paths:
            fs.invalidate_cache(path)


async def _read(fs: Any, requests: Sequence[HeadRequest], *how: Any) -> None:
    try:
        await run_requests(fs, requests, *how)
    finally:
        for each in requests:  # they are reference cycles, which would keep the memory until a garbage collection
            each.head.forget()


class HeadRequest(ObjectGet):
    """A request for a whole object, or for the first bytes of a large one.

    Args:
        head: takes the bytes; in memory by default.
    """

    def __init__(self, fs: Any, number: int, path: str, head: FirstBytes | None = None) -> None:
        self._new_head = functools.partial(FirstBytes, path, fs.request_size)
        self.head = head or self._new_head()
        super().__init__(PinnedObject(fs, path, None), self.head, self._accept, number)

    def _accept(self, _: RangeRequest) -> bool:
        if self.head.cut_off:
            return False
        if isinstance(self.head, HeadFile):
            return self.head.has_checksum() and self.head.store()
        return matches(self.head.headers, self.head.memory)

    def begun(self) -> FirstBytes | None:
        """Return the first bytes of the object, if they were read and there are more; only the first call has them."""
        begun, self.head = self.head, self._new_head()
        if begun.complete and begun.cut_off:
            return begun
        begun.forget()
        return None
