"""The files of ``open_async``, which coroutines read and write on the event loop that opened them."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
from collections.abc import Callable
from typing import Any

from fsspec.asyn import AbstractAsyncStreamedFile
from s3fs.core import version_id_kw

from fsspec_csx.s3.appending import check_absent
from fsspec_csx.s3.exit_calls import Error, Opening
from fsspec_csx.s3.file import part_writer
from fsspec_csx.s3.file_errors import check_open
from fsspec_csx.s3.transport.call_scope import finish_despite_cancel
from fsspec_csx.s3.transport.event_loop import submit, work_for
from fsspec_csx.s3.transport.request_body import single_bytes
from fsspec_csx.s3.transport.threads import run_in_thread
from fsspec_csx.s3.upload import object_call
from fsspec_csx.s3.versions import check_writable

logger = logging.getLogger("fsspec_csx")

# How long a cancelled task, such as at the end of the event loop, still waits for the abort of its upload.
_ABORT_SECONDS = 5.0


async def open_async(
    fs: Any,
    path: str,
    mode: str = "rb",
    block_size: int | None = None,
    acl: str | None = None,
    requester_pays: bool | None = None,
    compression: str | None = None,
    **kwargs: Any,
) -> AsyncReadFile | AsyncWriteFile:
    """Open a binary file for coroutines on the running event loop.

    Args:
        mode: "rb", "wb" or "xb".
        block_size: bytes of the first parts of an upload.
        kwargs: parameters of the requests, such as ``ContentType``.

    Raises:
        ObjectExistsError: in mode "xb", if the object exists.
        ValueError: for text, compression and other modes, and for a path that names no object.
    """
    if mode not in ("rb", "wb", "xb") or compression:
        msg = f"open_async opens uncompressed files in modes rb, wb and xb, not {mode!r}. Use open for others."
        raise ValueError(msg)
    path = fs._strip_protocol(path)
    if mode != "rb" and not check_writable(fs, path)[1]:
        msg = f"s3://{path} names no object. Give a bucket and a name, as in s3://bucket/name."
        raise ValueError(msg)
    await fs.set_session()
    if fs.req_kw if requester_pays is None else requester_pays:
        kwargs["RequestPayer"] = "requester"
    if mode == "rb":
        return AsyncReadFile(fs, path, **kwargs)
    if mode == "xb":
        await check_absent(fs, path)
    options = {**kwargs, **({"ACL": acl} if acl else {})}
    return AsyncWriteFile(fs, path, mode, block_size or fs._block_size(mode), options)


class AsyncReadFile(AbstractAsyncStreamedFile):  # type: ignore[misc]
    """An object that is read from front to back by one GetObject request, which the first ``read`` makes."""

    def __init__(self, fs: Any, path: str, **options: Any) -> None:
        self.fs, self.path, self.mode = fs, path, "rb"
        self.closed = False
        self.loc = 0
        self.size: int | None = None
        self._options = options
        self._body: Any = None

    async def read(self, length: int = -1) -> bytes:
        """Read up to ``length`` bytes, or to the end.

        Raises:
            ObjectNotFoundError: if the object does not exist.
            ConnectionError: if the connection ends before the object does.
        """
        check_open(self.path, self.closed)
        if self._body is None:
            bucket, key, version = self.fs.split_path(self.path)
            named = {"Bucket": bucket, "Key": key, **version_id_kw(version)}
            answer = await self.fs._call_s3("get_object", self._options, **named)
            self._body, self.size = answer["Body"], int(answer["ContentLength"])
        everything = length is None or length < 0
        try:
            data: bytes = await self._body.read(*([] if everything else [length]))
        except Exception:  # the connection is unusable
            await self.close()
            raise
        self.loc += len(data)
        if self.loc < (self.size or 0) and (everything or (length > 0 and not data)):
            msg = f"s3://{self.path} ended after {self.loc} of {self.size} bytes. Open it again and read it anew."
            raise ConnectionError(msg)
        return data

    async def close(self) -> None:
        self.closed = True
        if self._body is not None:
            self._body.close()

    def __del__(self) -> None:
        """Do nothing; the garbage collector closes the connection, as ``close`` is a coroutine."""


class AsyncWriteFile(AbstractAsyncStreamedFile):  # type: ignore[misc]
    """An object that coroutines write: sent in parts in the background, and published or discarded like a ``CSXFile``.

    ``close()`` publishes it. These discard it: an exception that leaves its ``async with`` block, ``discard()``, a
    failed or cancelled ``write``, and dropping it unclosed, which also warns.

    Args:
        mode: "wb", or "xb" to refuse to replace an object.
        part: bytes of the first parts, if the caller chooses.
        options: parameters of the upload's requests.
    """

    def __init__(self, fs: Any, path: str, mode: str, part: int | None, options: dict[str, Any]) -> None:
        bucket, key, _ = fs.split_path(path)
        self.fs, self.path, self.mode = fs, path, mode
        self.loc = 0
        self._loop = asyncio.get_running_loop()
        call, make_work = object_call(fs, bucket, key, options), functools.partial(work_for, self._loop)
        self._writer = part_writer(fs, call, make_work, part, {**fs.s3_additional_kwargs, **options})
        self._turn = asyncio.Lock()  # for tasks that write at the same time
        self._opening = Opening(path)
        self.closed = self.forced = False

    async def write(self, data: Any) -> int:
        """Write a buffer and return its size; parts are sent in the background, and later calls raise errors."""
        view = single_bytes(data)
        async with self._turn:
            check_open(self.path, self.closed)
            write = functools.partial(self._writer.write, view, stable=type(data) is bytes)
            await self._discarded_on_failure(write, here=self._writer.fits(len(view)))
            self.loc += len(view)
        return len(view)

    async def flush(self, force: bool = False) -> None:
        """Do nothing, as parts are sent when they are full; with ``force``, end the writing as ``close`` does."""
        check_open(self.path, self.closed)
        if force:
            await self.close()

    async def close(self) -> None:
        """Publish what was written, or discard it if called by an ``__aexit__`` that received an exception."""
        async with self._turn:
            if self.closed:
                return
            if error := self._opening.leaving_exception():
                await self._end(error)
                self._opening.report(error)
                return
            condition = {"IfNoneMatch": "*"} if "x" in self.mode else {}
            await self._discarded_on_failure(functools.partial(self._writer.finish, **condition))
            self.closed = True
            self.fs.invalidate_cache(self.path)

    async def discard(self, error: Error | None = None) -> None:
        """Discard what was written, because of an error if there is one.

        The former object stays, and the multipart upload is aborted.
        """
        async with self._turn:
            if not self.closed:
                await self._end(error)

    async def commit(self) -> None:
        await self.close()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is None:
            await self.close()
        elif not self.closed:
            await self.discard(error)
            self._opening.warn_if_silent(error)

    def __del__(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._loop.is_running():
            # Python may collect this during any call, whose context would cancel the abort when the call ends.
            contextvars.Context().run(submit, self._loop, self._writer.abandon())
        self._opening.warn("It was not closed.")

    async def _discarded_on_failure(self, work: Callable[[], Any], *, here: bool = False) -> None:
        """Run work of the writer, in a thread unless ``here``; discard the file if it fails or is cancelled."""
        try:
            if here:
                work()
            else:
                await run_in_thread(work, self._writer.stop)
        except BaseException as error:
            await self._end(error)
            raise

    async def _end(self, error: Error | None) -> None:
        """Abort the upload because of this error, if there is one."""
        self.closed = True
        cancelled = asyncio.CancelledError in (error, type(error))
        abort = asyncio.ensure_future(self._writer.abandon())
        abort.add_done_callback(self._warn_of_failure)
        with contextlib.suppress(Exception):  # the first error must not be hidden
            await finish_despite_cancel(abort, _ABORT_SECONDS, cancelled=cancelled)

    def _warn_of_failure(self, abort: asyncio.Future[None]) -> None:
        reason = f"it took more than {_ABORT_SECONDS:g} s." if abort.cancelled() else abort.exception()
        if reason is not None:
            logger.warning("The unfinished upload to s3://%s could not be aborted: %s", self.path, reason)
