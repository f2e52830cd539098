"""Transactions: files and writes of whole objects within an fsspec transaction are published at its end.

fsspec's caches ``simplecache::s3://…`` and ``filecache::s3://…`` upload a local file when it is closed, even if an
exception leaves the block. This module prevents publishing such an incomplete file.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

from fsspec.callbacks import Callback
from fsspec.implementations import cached
from fsspec.transaction import Transaction

from fsspec_csx.s3.exit_calls import Opening, innermost_error
from fsspec_csx.s3.interrupt import interruptible
from fsspec_csx.s3.part_sizes import LEAST_PART
from fsspec_csx.s3.transport.threads import run_in_thread
from fsspec_csx.s3.versions import check_writable

_PIECE = 8 * 2**20
_NESTED = "The filesystem is in a transaction. End it first, or use another instance (skip_instance_cache=True)."


class ExclusiveTransaction(Transaction):  # type: ignore[misc]  # fsspec has no types
    """A transaction that refuses to begin within another one of the filesystem, whose files it would lose.

    Raises:
        RuntimeError: if a transaction has begun, perhaps in another thread.
    """

    def __init__(self, fs: Any, **kwargs: Any) -> None:
        super().__init__(fs, **kwargs)
        if getattr(fs._transaction, "_begun", False):
            raise RuntimeError(_NESTED)
        self._begun = bool(fs._intrans)  # ``start_transaction`` sets it first
        self._started = False

    def start(self) -> None:
        """Begin; a transaction by ``start_transaction`` may be used in a with statement."""
        if self.fs._intrans and (self._started or self.files or self.fs._transaction is not self):
            raise RuntimeError(_NESTED)
        super().start()
        self._begun = self._started = True


def pieces_of(path: str, callback: Callback, ready: Callable[[], object]) -> Iterator[bytes]:
    """Yield the bytes of a local file, and then call ``ready``."""
    with open(path, "rb") as source:
        callback.set_size(os.fstat(source.fileno()).st_size)
        while piece := source.read(_PIECE):
            yield piece
            callback.relative_update(len(piece))
    ready()


async def write(
    fs: Any, path: str, pieces: Iterable[Any], part: int | None, mode: str, options: dict[str, Any]
) -> None:
    """Write pieces to an object that the end of the transaction publishes."""
    options.pop("max_concurrency", None)
    size = max(part, LEAST_PART) if part else None
    stopped = threading.Event()

    def write_pieces() -> None:
        # If the transaction has ended meanwhile, nothing commits the file. ``open`` would drop a slash at its end.
        target, create = "/".join(check_writable(fs, path)), mode == "create"
        file = fs._open(target, "xb" if create else "wb", block_size=size, autocommit=False, **options)
        fs.transaction.files.append(file)
        with file:
            for piece in pieces:
                file.write(piece)
                if stopped.is_set():
                    msg = "The write was stopped."
                    raise RuntimeError(msg)

    await run_in_thread(write_pieces, stopped.set)


def put(fs: Any, lpath: Any, rpath: Any, *args: Any, **kwargs: Any) -> Any:
    """Upload local files; as ``s3fs.S3FileSystem.put``."""
    return None if _is_discarded(sys._getframe(1), rpath) else _put_and_wait(fs, lpath, rpath, *args, **kwargs)


_put_and_wait = interruptible(lambda fs, *args, **kwargs: fs._put(*args, **kwargs))


def _is_discarded(caller: FrameType, paths: object) -> bool:
    """Return whether a cache uploads a file whose block an exception has left; if so, discard the file."""
    # The time when the file was opened is unknown, so the innermost __exit__ decides.
    if caller.f_globals.get("__name__") != cached.__name__ or (error := innermost_error()) is None:
        return False
    file = caller.f_locals.get("self")
    if isinstance(file, cached.LocalTempFile):
        file.discard()
    for path in paths if isinstance(paths, (list, tuple)) else [paths]:
        Opening(str(path)).report(error)
    return True
