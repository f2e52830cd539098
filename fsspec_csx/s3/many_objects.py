"""Many objects at a time: read whole or in part, to memory and to local files, by requests that are alike."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fsspec.callbacks import Callback

from fsspec_csx.s3.consistent_read import PinnedObject, retry_if_changed
from fsspec_csx.s3.download import check_inside, read_whole
from fsspec_csx.s3.head_range import HeadRange
from fsspec_csx.s3.many_reads import ObjectRequest, has_checksum, read_alike
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.storage.local_file import atomic_local_write


def is_ours(fs: Any, name: str, function: Callable[..., Any]) -> bool:
    """Whether a method of a filesystem is this function: a subclass may read its objects in another way."""
    return getattr(type(fs), name) is function and name not in vars(fs)


async def cat_files(fs: Any, paths: Sequence[str], most: int | None = None) -> list[Any]:
    """The bytes of many objects, or why one of them could not be read.

    Args:
        most: how many at a time.
    """
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
    """Make many objects local files; see ``get_file``.

    Args:
        pairs: of objects and files.
        alone: fetches one by its number, whose beginning may have been read.
        callback: learns of each.
        most: how many at a time.
    """

    def store(request: HeadRequest) -> bool:
        source, target = pairs[request.number]
        check_inside(source, target)
        if os.path.lexists(target) and not os.path.isfile(target):  # a folder, a pipe or a device
            return False
        with atomic_local_write(target) as descriptor:
            memory = request.head.memory
            while memory:
                memory = memory[os.write(descriptor, memory) :]
        request.head.forget()
        return True

    async def fetch(request: HeadRequest) -> None:
        try:
            await alone(request.number, request.begun())
        finally:
            callback.relative_update(1)

    def finished(request: HeadRequest) -> None:
        with callback.branched(*pairs[request.number]) as child:
            child.set_size(request.head.length)
            child.absolute_update(request.head.length)
        callback.relative_update(1)

    requests = [HeadRequest(fs, number, path, store) for number, (path, _) in enumerate(pairs)]
    await _read(fs, requests, fetch, finished, most)


async def _read(fs: Any, requests: Sequence[HeadRequest], *how: Any) -> None:
    try:
        await read_alike(fs, requests, *how)
    finally:
        for each in requests:  # which refer to themselves, and so stay until Python looks for cycles
            each.head.forget()


class HeadRequest(ObjectRequest):
    """A request for a whole object, or the beginning of a large one.

    Args:
        store: what is done in a thread with an object that has come whole; whether it was done.
    """

    def __init__(self, fs: Any, number: int, path: str, store: Callable[[HeadRequest], bool] = bool) -> None:
        self.head = HeadRange(path)
        super().__init__(PinnedObject(fs, path, None), self.head, self._accept, number)
        self._store = store

    def _accept(self, _: RangeRequest) -> bool:
        whole = not self.head.cut_off and has_checksum(self.state, self.head, self.head.memory)
        return whole and self._store(self)

    def begun(self) -> HeadRange | None:
        """The beginning of the object, once, if that was read and there is more."""
        begun, self.head = self.head, HeadRange(self.state)
        return begun if begun.complete and begun.cut_off else None
