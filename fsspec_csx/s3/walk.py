"""Walks the folders below a path, one listing after the other."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from fsspec_csx.s3.listing import check_depth
from fsspec_csx.s3.transport.event_loop import run_and_wait


async def walk_async(
    fs: Any,
    path: str,
    maxdepth: int | None = None,
    topdown: bool = True,
    on_error: str | Callable[[OSError], object] = "omit",
    detail: bool = False,
    **kwargs: Any,
) -> AsyncIterator[Any]:
    """Yield the folders below a path with their contents; as ``fsspec.asyn.AsyncFileSystem._walk``.

    Args:
        on_error: "omit" leaves a missing folder empty, and raises other errors, as without credentials or a server
            everything would seem empty; "raise" raises all; a function is called with each error of any folder.
        kwargs: those of ``ls``.

    Raises:
        ValueError: if the path names no bucket, or ``maxdepth`` is less than 1.
    """
    check_depth(maxdepth)
    if path in ("", "*", *(f"{each}://" for each in fs.protocol)):  # but "/" walks all buckets, as with s3fs
        msg = "The path names no bucket, and all of S3 cannot be listed. Name a bucket."
        raise ValueError(msg)
    path = fs._strip_protocol(path)
    listed = []
    try:
        listed = await fs._ls(path, detail=True, **kwargs)
    except OSError as error:
        if callable(on_error):
            on_error(error)
        elif on_error == "raise" or not isinstance(error, FileNotFoundError):
            raise
    folders: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for each in listed:
        name = each["name"].rstrip("/")
        if each["type"] == "directory" and name != path:
            folders[name.rpartition("/")[2]] = each
        else:
            files["" if name == path else name.rpartition("/")[2]] = each
    step = (path, folders, files) if detail else (path, list(folders), list(files))
    if topdown:
        yield step
    if maxdepth != 1:
        deeper = {"maxdepth": maxdepth and maxdepth - 1, "topdown": topdown, "on_error": on_error, "detail": detail}
        for name in step[1]:  # from which the caller may have removed some
            async for each in fs._walk(folders[name]["name"], **deeper, **kwargs):
                yield each
    if not topdown:
        yield step


def walk(fs: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Yield the folders below a path with their contents; each step can be interrupted.

    It yields a folder's path, and the names of its folders and files; with ``detail``, dicts of their entries.

    Args:
        args: the path, and ``maxdepth``, ``topdown`` and ``on_error`` of ``walk_async``.
        kwargs: the same by name, and those of ``ls``.
    """
    steps = fs._walk(*args, **kwargs)
    with contextlib.suppress(StopAsyncIteration):
        while True:
            yield run_and_wait(fs, steps.__anext__)
