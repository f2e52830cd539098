"""CSXFile: the file that ``fsspec.open("s3://...")`` returns, published whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from s3fs.core import S3File, version_id_kw
from s3fs.utils import FileExpired
from zlib_ng import zlib_ng

from fsspec_csx.errors import ObjectExistsError, ObjectNotFoundError
from fsspec_csx.explain import code_of

logger = logging.getLogger("fsspec_csx")

_PARALLEL_FROM = 2 * 2**20
_ABORT_SECONDS = 30.0
_ABORT_SECONDS_AT_EXIT = 5.0


class CSXFile(S3File):  # type: ignore[misc]
    """An S3 object as a file; as ``s3fs.S3File``, but an unfinished write leaves no trace.

    Written data becomes the object when the file is closed, and only if it is closed in good order. A ``with`` block
    left by an exception (Ctrl-C too), a ``close`` while an exception raised since the opening is being handled, a
    write that failed, a transaction rolled back, and a file dropped without ``close`` all discard it: the former
    object stays, and the multipart upload is aborted.

    Raises:
        ObjectNotFoundError: when opened for reading and there is no such object.
        ObjectExistsError: when opened in mode ``x`` and there is one.
        CredentialsError: at once, if the credentials are missing; for writing too.
    """

    # What __del__ finds on a file whose __init__ failed.
    mode = "rb"
    buffer: io.BytesIO | None = None
    mpu = None
    _finished = False
    _dropped = False
    _pid = 0
    _in_flight_at_open: BaseException | None = None

    def __init__(self, fs: Any, path: str, mode: str = "rb", **kwargs: Any) -> None:
        if mode == "rb":
            super().__init__(fs, path, mode, **kwargs)
            if self._details is not None and self._details.get("type") == "directory":
                reason = f"There is no object s3://{self.path}, only objects below s3://{self.path}/."
                raise ObjectNotFoundError(reason, "Name one of them.")
            return
        if fs.split_path(path)[2]:
            msg = f"{path!r} names a version, and versions cannot be written. Leave ?versionId= away."
            raise ValueError(msg)
        self._in_flight_at_open = sys.exc_info()[1]
        self._pid = os.getpid()
        fs.connect()
        if mode == "xb":
            _check_absent(fs, path)
        super().__init__(fs, path, mode, **kwargs)
        fs.unfinished[id(self)] = self

    # -- the ways to end a write ------------------------------------------------------------------------------------

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.mode == "rb" or self.closed:
            super().close()
        elif error is None:
            self._publish()
        else:
            self.discard()

    def close(self) -> None:
        """Publish what was written, unless an exception is in flight that was not when the file was opened."""
        in_flight = sys.exc_info()[1]
        if self.mode == "rb" or self.closed:
            super().close()
        elif self._dropped:
            self._discard(seconds=0)
        elif in_flight is None or in_flight is self._in_flight_at_open:
            self._publish()
        else:
            # A text or compressing wrapper closes us without saying why.
            logger.warning("s3://%s was not written: closed while %s is in flight", self.path, type(in_flight).__name__)
            self.discard()

    def _publish(self) -> None:
        if self._pid != os.getpid():
            self.discard()
            return
        with self._discarded_on_failure():
            super().close()

    def commit(self) -> None:
        """Make what was written the object; a transaction calls this.

        Raises:
            FileExistsError: in mode ``x``, if the object exists by now.
            ValueError: if it was discarded.
        """
        if self._finished:
            msg = f"s3://{self.path} cannot be published: it was discarded or published before. Open it again."
            raise ValueError(msg)
        with self._discarded_on_failure():
            if self.tell() == 0 and "x" in self.mode:
                # s3fs would put the empty object over an existing one.
                self._call_s3("put_object", Bucket=self.bucket, Key=self.key, Body=b"", IfNoneMatch="*")
                self._abort_upload(_ABORT_SECONDS)
            else:
                super().commit()
        self._end()

    def discard(self) -> None:
        """Forget what was written: the former object stays, and no multipart upload is left behind."""
        self._discard(_ABORT_SECONDS)

    def _discard(self, seconds: float) -> None:
        """Discard, waiting this long for the abort of the upload to be answered."""
        if self._finished:
            return
        self.closed = True
        self._end()
        if self._pid != os.getpid():
            return  # a forked child drops its copy of the file; the upload is its parent's
        if not self.autocommit and self.fs._transaction and self in self.fs._transaction.files:
            self.fs._transaction.files.remove(self)  # it shall commit the others
        self._abort_upload(seconds)

    def _end(self) -> None:
        self._finished = True
        self._in_flight_at_open = None
        self.buffer = None
        self.fs.unfinished.pop(id(self), None)

    @contextlib.contextmanager
    def _discarded_on_failure(self) -> Any:
        try:
            yield
        except BaseException:
            self.discard()
            raise

    def __del__(self) -> None:
        # Reached unfinished only when dropped: what it holds may be half of what was meant.
        if self.mode != "rb":
            self._discard(seconds=0)

    def _dealloc_warn(self, source: object) -> None:
        """A text wrapper that is dropped unclosed calls this, writes what it still holds, and closes us."""
        if self.mode != "rb" and not self._finished:
            self._dropped = True
            self.buffer = io.BytesIO()  # what it writes shall start no upload

    # -- reading ----------------------------------------------------------------------------------------------------

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position, a large one by parallel requests straight into its memory.

        Returns:
            The number of bytes read, less than the buffer's only at the end of the object.

        Raises:
            s3fs.utils.FileExpired: an OSError, if the object was replaced since it was opened.
        """
        memory = memoryview(buffer).cast("B")
        memory = memory[: max(0, self.size - self.loc)] if self.mode == "rb" and not self.closed else memory[:0]
        if len(memory) < _PARALLEL_FROM:
            return int(super().readinto(buffer))
        self._wait(self._read_parts(memory))
        self.loc += len(memory)
        return len(memory)

    def readinto_many(
        self,
        spans: Sequence[tuple[int, memoryview]],
        *,
        advance: Callable[[int], object] | None = None,
        crc32: bool = False,
    ) -> list[int]:
        """Fill many memories from many positions, all at once; the file's own position stays.

        Args:
            spans: positions in the file, in bytes, each with the writable memory (contiguous, of single bytes) that
                is to be filled from there. In any order; the file must reach as far.
            advance: is told, in this thread, how many bytes came, many times.
            crc32: whether to compute the CRC-32 of each span, as it comes.

        Returns:
            The CRC-32 of each span, in the order of the spans; an empty list unless ``crc32``.

        Raises:
            ValueError: if a span reaches beyond the end of the file.
            s3fs.utils.FileExpired: an OSError, if the object was replaced since it was opened.
        """
        for position, memory in spans:
            self.seek(position)
            self.readinto(memory)
            if advance:
                advance(len(memory))
        return [zlib_ng.crc32(memory) for _, memory in spans] if crc32 else []

    def write_borrowed(self, data: Any) -> int:
        """Write a buffer without copying it; as ``write``, but it must neither change nor go until the file is closed.

        Args:
            data: contiguous memory, such as that of a tensor which the caller holds.

        Returns:
            Its size in bytes.
        """
        return int(self.write(data))

    async def _read_parts(self, memory: memoryview) -> None:
        pinned = version_id_kw(self.version_id)
        read_kw = getattr(self, "read_kw", self.req_kw)  # older releases of s3fs have but one

        async def get(span: str) -> Any:
            answer = await self.fs._call_s3(
                "get_object", read_kw, Bucket=self.bucket, Key=self.key, Range=span, **pinned
            )
            if self._details is not None and answer.get("ETag") != self._details.get("ETag", answer.get("ETag")):
                raise FileExpired(self.path, self._details["ETag"])
            return answer

        await self.fs.set_session()
        try:
            await self.fs.transfer.read(get, self.loc, memory)
        except OSError as error:
            if code_of(error) in ("PreconditionFailed", "412"):
                raise FileExpired(self.path, self.details.get("ETag")) from error
            raise

    # -- requests ---------------------------------------------------------------------------------------------------

    def _initiate_upload(self) -> None:
        with self._discarded_on_failure():
            super()._initiate_upload()

    def _upload_chunk(self, final: bool = False) -> Any:
        with self._discarded_on_failure():
            return super()._upload_chunk(final)

    def _call_s3(self, method: str, *kwarglist: Any, **kwargs: Any) -> Any:
        if self._pid != os.getpid() and self.mode != "rb":
            msg = f"s3://{self.path} is being written by the process that opened it. Open another in this one."
            raise RuntimeError(msg)
        payer = getattr(self, "_request_payer_kw", self.req_kw)
        return self._wait(
            self.fs._call_s3(method, self.s3_additional_kwargs, payer, *kwarglist, **kwargs),
            creates_upload=method == "create_multipart_upload",
        )

    def _wait(self, coroutine: Any, creates_upload: bool = False) -> Any:
        if self._on_loop():
            coroutine.close()
            msg = "A file cannot wait on the event loop that serves it. Use open_async, or another thread."
            raise RuntimeError(msg)
        future = self._start(coroutine)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C ends the waiting, not the request: an upload that it creates must be known to be aborted.
            if creates_upload:
                with contextlib.suppress(Exception):
                    self.mpu = future.result(_ABORT_SECONDS)
            future.cancel()
            raise

    def _abort_upload(self, seconds: float) -> None:
        upload, self.mpu = self.mpu, None
        if upload is None or self.fs.loop.is_closed():
            return
        future = self._start(self.fs._abort_mpu(self.bucket, self.key, upload["UploadId"]))
        if not seconds or self._on_loop():
            return
        try:
            future.result(seconds)
        except FileNotFoundError:
            pass  # completed or aborted already
        except Exception as error:  # what led here must not be hidden
            logger.warning("The unfinished upload to s3://%s could not be aborted: %s", self.path, error)

    def _start(self, coroutine: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.fs.loop)

    def _on_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self.fs.loop
        except RuntimeError:
            return False


def _check_absent(fs: Any, path: str) -> None:
    """Tell a writer of a new object that it exists now rather than after all its work; the commit decides."""
    try:
        found = fs.info(path, refresh=True)
    except FileNotFoundError:
        return
    if found["type"] == "file":
        raise ObjectExistsError(f"s3://{path} exists already.", "Choose another name, or overwrite it.")


def close_together(wrapper: Any, file: CSXFile) -> Any:
    """Let a compressor's ``close`` publish the file below it, which fsspec leaves to the garbage collector.

    Args:
        wrapper: the compressing file object, such as a ``gzip.GzipFile``.
        file: the file that it writes to.

    Returns:
        The wrapper.
    """
    finish = wrapper.close

    def close() -> None:
        if getattr(wrapper, "_finalizing", False):  # io sets it on what is dropped unclosed
            file._discard(seconds=0)
            return
        with file._discarded_on_failure():
            finish()
        file.close()

    with contextlib.suppress(AttributeError):  # extension types take no attribute, and close the file themselves
        wrapper.close = close
    return wrapper


def discard_all(unfinished: weakref.WeakValueDictionary[int, CSXFile]) -> None:
    """Discard the files that are still open for writing when the interpreter exits."""
    for file in list(unfinished.values()):
        file._discard(_ABORT_SECONDS_AT_EXIT)
