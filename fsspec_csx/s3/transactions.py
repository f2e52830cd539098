"""Transactions: within one of fsspec, writes of whole objects wait for its end, as files do."""

from __future__ import annotations

import mimetypes
import os
import sys
import threading
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from fsspec_csx.s3 import upload
from fsspec_csx.s3.cached_writes import is_discarded
from fsspec_csx.s3.interrupt import interruptible, run_in_thread

_PIECE = 8 * 2**20
_SMALLEST_PART = 5 * 2**20


async def pipe_file(
    fs: Any, path: str, data: Any, chunksize: int | None = None, mode: str = "overwrite", **kwargs: Any
) -> Any:
    if not fs._intrans:
        return await upload.pipe_file(fs, path, data, chunksize, mode, **kwargs)

    def write() -> None:
        with _open(fs, path, chunksize, mode, kwargs) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            _check(stopped)

    stopped = threading.Event()
    await run_in_thread(write, stopped.set)
    return None


async def put_file(
    fs: Any,
    lpath: str,
    rpath: str,
    callback: Callback = DEFAULT_CALLBACK,
    chunksize: int | None = None,
    mode: str = "overwrite",
    resumable: bool = False,
    **kwargs: Any,
) -> None:
    if not fs._intrans or os.path.isdir(lpath):
        await upload.put_file(fs, lpath, rpath, callback, chunksize, mode, resumable, **kwargs)
        return
    if guessed := mimetypes.guess_type(lpath)[0]:
        kwargs.setdefault("ContentType", guessed)

    def write() -> None:
        with open(lpath, "rb") as source, _open(fs, rpath, chunksize, mode, kwargs) as file:
            callback.set_size(os.fstat(source.fileno()).st_size)
            while piece := source.read(_PIECE):
                file.write(piece)
                callback.relative_update(len(piece))
                _check(stopped)

    stopped = threading.Event()
    await run_in_thread(write, stopped.set)


def _open(fs: Any, path: str, part: int | None, mode: str, options: dict[str, Any]) -> Any:
    options = {name: value for name, value in options.items() if name != "max_concurrency"}
    size = max(part, _SMALLEST_PART) if part else None
    # Should the transaction have ended meanwhile, nobody commits the file.
    return fs.open(path, "xb" if mode == "create" else "wb", block_size=size, autocommit=False, **options)


def put(fs: Any, lpath: Any, rpath: Any, *args: Any, **kwargs: Any) -> Any:
    """Make local files objects; as ``s3fs.S3FileSystem.put``."""
    if is_discarded(sys._getframe(1), rpath):
        return None
    return _put_and_wait(fs, lpath, rpath, *args, **kwargs)


_put_and_wait = interruptible(lambda fs, *args, **kwargs: fs._put(*args, **kwargs))


def _check(stopped: threading.Event) -> None:
    if stopped.is_set():
        msg = "The writing was stopped."
        raise RuntimeError(msg)
