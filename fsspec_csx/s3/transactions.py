"""TransactionalS3: within a transaction of fsspec, writes of whole objects wait for its end, as files do."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from fsspec_csx.s3.cached_writes import is_discarded
from fsspec_csx.s3.interrupt import interruptible
from fsspec_csx.s3.trees import TreesS3

_PIECE = 8 * 2**20
_SMALLEST_PART = 5 * 2**20


class TransactionalS3(TreesS3):
    """Writes of whole objects; the base of CSXFileSystem, of no use alone."""

    async def _pipe_file(
        self, path: str, data: Any, chunksize: int | None = None, mode: str = "overwrite", **kwargs: Any
    ) -> Any:
        if not self._intrans:
            return await super()._pipe_file(path, data, chunksize, mode, **kwargs)

        def write(stopped: threading.Event) -> None:
            with self._opened(path, chunksize, mode, kwargs) as file:
                file.write(data.encode() if isinstance(data, str) else data)
                _check(stopped)

        await _in_thread(write)
        return None

    async def _put_file(
        self,
        lpath: str,
        rpath: str,
        callback: Callback = DEFAULT_CALLBACK,
        chunksize: int | None = None,
        mode: str = "overwrite",
        resumable: bool = False,
        **kwargs: Any,
    ) -> None:
        if not self._intrans or os.path.isdir(lpath):
            await super()._put_file(lpath, rpath, callback, chunksize, mode, resumable, **kwargs)
            return
        if guessed := mimetypes.guess_type(lpath)[0]:
            kwargs.setdefault("ContentType", guessed)

        def write(stopped: threading.Event) -> None:
            with open(lpath, "rb") as source, self._opened(rpath, chunksize, mode, kwargs) as file:
                callback.set_size(os.fstat(source.fileno()).st_size)
                while piece := source.read(_PIECE):
                    file.write(piece)
                    callback.relative_update(len(piece))
                    _check(stopped)

        await _in_thread(write)

    def _opened(self, path: str, part: int | None, mode: str, options: dict[str, Any]) -> Any:
        options = {name: value for name, value in options.items() if name != "max_concurrency"}
        size = max(part, _SMALLEST_PART) if part else None
        # Should the transaction have ended meanwhile, nobody commits the file.
        return self.open(path, "xb" if mode == "create" else "wb", block_size=size, autocommit=False, **options)

    def put(self, lpath: Any, rpath: Any, *args: Any, **kwargs: Any) -> Any:
        """Make local files objects; as ``s3fs.S3FileSystem.put``."""
        if is_discarded(sys._getframe(1), rpath):
            return None
        return self._put_and_wait(lpath, rpath, *args, **kwargs)

    _put_and_wait = interruptible(lambda self, *args, **kwargs: self._put(*args, **kwargs))
    pipe_file = interruptible(_pipe_file)
    put_file = interruptible(_put_file)


async def _in_thread(work: Callable[[threading.Event], None]) -> None:
    """Do what waits for the event loop in a thread; it ends before this does, whatever ends this."""
    stopped = threading.Event()
    running = asyncio.ensure_future(asyncio.to_thread(work, stopped))
    try:
        await asyncio.shield(running)
    except BaseException:
        stopped.set()
        await asyncio.wait([running])
        running.exception()
        raise


def _check(stopped: threading.Event) -> None:
    if stopped.is_set():
        msg = "The writing was stopped."
        raise RuntimeError(msg)
