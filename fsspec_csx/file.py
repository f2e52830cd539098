"""CSXFile: the file that ``fsspec.open("s3://...")`` returns, published whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import logging
import os
import queue
import sys
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from s3fs.core import S3File, version_id_kw
from s3fs.utils import FileExpired
from zlib_ng import zlib_ng

from fsspec_csx.checksum import Algorithm, of_object
from fsspec_csx.errors import ObjectExistsError, ObjectNotFoundError
from fsspec_csx.explain import code_of
from fsspec_csx.multipart import LARGEST_PART, Call
from fsspec_csx.payload import single_bytes
from fsspec_csx.ranges import Range, Span, checksums, planned, size_for
from fsspec_csx.readahead import ReadAhead
from fsspec_csx.transfer import Transfer
from fsspec_csx.writer import PartWriter

logger = logging.getLogger("fsspec_csx")

_PARALLEL_FROM = 2 * 2**20
_FOLLOWING = 64 * 1024
# A line is looked for in so many bytes at a time.
_LINE = 64 * 1024
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
    loc: int
    forced: bool
    cache: Any = None
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
            if kwargs.get("cache_type") == ReadAhead.name:
                self.cache = ReadAhead(self.blocksize, self._fetch_bytes, self.size)
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
        self.buffer = None
        if self.append_block:
            self._writer.sources = self._copied()
        self._size_at_open = self.loc
        fs.unfinished[id(self)] = self

    def _copied(self) -> list[dict[str, Any]]:
        """What is to be copied by the server: all that there is, in equal parts, as none may be too small either."""
        source = {"CopySource": {"Bucket": self.bucket, "Key": self.key}}
        if self.loc <= LARGEST_PART:
            return [source]
        part = -(-self.loc // -(-self.loc // LARGEST_PART))
        spans = [(start, min(start + part, self.loc)) for start in range(0, self.loc, part)]
        return [{**source, "CopySourceRange": f"bytes={start}-{end - 1}"} for start, end in spans]

    # -- the ways to end a write ------------------------------------------------------------------------------------

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.mode == "rb" or self.closed:
            self.close()
        elif error is None:
            self._publish()
        else:
            self.discard()

    def close(self) -> None:
        """Publish what was written, unless an exception is in flight that was not when the file was opened."""
        in_flight = sys.exc_info()[1]
        if self.mode == "rb" or self.closed:
            if isinstance(self.cache, ReadAhead):
                self.cache.clear()  # what is still being fetched for it
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
            if not self.append_block or self.loc > self._size_at_open:
                answer = self._writer.finish(**({"IfNoneMatch": "*"} if "x" in self.mode else {}))
                if self.fs.version_aware:
                    self.version_id = answer.get("VersionId")
        self.fs.invalidate_cache(self.path)
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

    # -- writing ----------------------------------------------------------------------------------------------------

    def write(self, data: Any) -> int:
        """Write a buffer; its parts are sent in the background, and what failed there is raised by a later call.

        The memory is the caller's again when this returns: it was copied, or if it is large sent from where it is.

        Returns:
            Its size in bytes.
        """
        return self._write(data, keep=type(data) is bytes, held=False)

    def write_borrowed(self, data: Any) -> int:
        """Write a buffer without copying it; as ``write``, but it must neither change nor go until the file is closed.

        Args:
            data: contiguous memory, such as that of a tensor which the caller holds.

        Returns:
            Its size in bytes.
        """
        return self._write(data, keep=True, held=True)

    def _write(self, data: Any, *, keep: bool, held: bool) -> int:
        if self.mode == "rb":
            msg = "The file was opened for reading. Open it in mode wb."
            raise ValueError(msg)
        if self.closed or self.forced:
            msg = f"s3://{self.path} is closed. Open it again."
            raise ValueError(msg)
        view = single_bytes(data)
        if self._dropped:
            return len(view)  # a wrapper that is dropped too writes what it still holds
        try:
            self._writer.write(view, keep=keep, held=held)
        except BaseException:
            self.discard()
            raise
        self.loc += len(view)
        return len(view)

    def flush(self, force: bool = False) -> None:
        """Do nothing, as parts are sent when they are full; ``force`` ends the writing, as ``close`` does."""
        if self.closed:
            msg = f"s3://{self.path} is closed. Open it again."
            raise ValueError(msg)
        if not force or self.mode == "rb" or self.forced:
            return
        self.forced = True
        if self.autocommit:
            self.commit()

    @functools.cached_property
    def _writer(self) -> PartWriter:
        own = any(name.startswith("Checksum") for name in self.s3_additional_kwargs)
        return PartWriter(
            self._request,
            self.fs.transfer,
            functools.partial(_start_sending, self.fs, self.path, self._pid),
            first_part=self.blocksize,
            growing=not self.fs.fixed_upload_size,
            checked=not own,
        )

    # -- reading ----------------------------------------------------------------------------------------------------

    def readline(self) -> bytes:
        """The bytes up to the next line feed, it included, or to the end."""
        # fsspec copies a whole block for each line.
        return bytes(self.readuntil(b"\n", min(self.blocksize, _LINE)))

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position, a large one by parallel requests straight into its memory.

        Returns:
            The number of bytes read, less than the buffer's only at the end of the object.

        Raises:
            s3fs.utils.FileExpired: an OSError, if the object was replaced since it was opened.
        """
        whole = single_bytes(buffer)
        memory = whole[: max(0, self.size - self.loc)] if self.mode == "rb" and not self.closed else whole[:0]
        if len(memory) < _PARALLEL_FROM:
            return int(super().readinto(whole))
        ahead = self.cache if isinstance(self.cache, ReadAhead) else None
        here = ahead.take(self.loc, memory) if ahead else 0
        end = self.loc + len(memory)
        following = memoryview(bytearray(min(_FOLLOWING, self.size - end) if ahead else 0))
        self.readinto_many([(self.loc + here, memory[here:]), (end, following)])
        if ahead:
            ahead.put(end, bytes(following))
        self.loc = end
        return len(memory)

    def readinto_many(
        self,
        spans: Sequence[Span],
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
            if not 0 <= position <= position + len(memory) <= self.size:
                msg = f"s3://{self.path} has {self.size} bytes, not {len(memory)} from {position} on. Read less."
                raise ValueError(msg)
        part = size_for(sum(len(memory) for _, memory in spans), self.fs.max_concurrency)
        ranges = planned(spans, part, zlib_ng.crc32 if crc32 else None)
        told: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        _check_off_loop(self.fs)
        future = self._start(self._fetch(ranges, told.put))
        future.add_done_callback(lambda _: told.put(None))
        try:
            while (count := told.get()) is not None:
                if advance:
                    advance(count)
            future.result()
        except BaseException:
            future.cancel()
            self._start(Transfer.ended(ranges)).result()  # the memory is the caller's again
            raise
        return checksums(ranges, len(spans), zlib_ng.crc32_combine) if crc32 else []

    def object_checksum(self) -> tuple[Algorithm, str] | None:
        """What the server tells of the whole object: how its checksum is computed, and the checksum as S3 writes it.

        Returns:
            None if it tells none.

        Raises:
            s3fs.utils.FileExpired: an OSError, if the object was replaced since it was opened.
        """
        _check_off_loop(self.fs)
        asked = self._request("head_object", ChecksumMode="ENABLED", **version_id_kw(self.version_id))
        answer = self._start(asked).result()
        if answer.get("ETag") != self.details.get("ETag"):
            raise FileExpired(self.path, self.details.get("ETag"))
        return of_object(answer["ResponseMetadata"]["HTTPHeaders"])

    def _fetch_range(self, start: int, end: int) -> bytes:
        _check_off_loop(self.fs)
        future = self._fetch_bytes(start, end)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _fetch_bytes(self, start: int, end: int) -> Future[bytes]:
        return self._start(self._read(start, end))

    async def _read(self, start: int, end: int) -> bytes:
        end = min(end, self.size)  # some of fsspec's caches ask for whole blocks
        if start >= end:
            return b""
        target = io.BytesIO(bytes(end - start))  # lets its memory be written to, and handed out as bytes uncopied
        with target.getbuffer() as memory:
            await self._fetch(planned([(start, memory)], size_for(end - start, self.fs.max_concurrency)))
        return target.getvalue()

    async def _fetch(self, ranges: Sequence[Range], advance: Callable[[int], object] = lambda count: None) -> None:
        pinned = version_id_kw(self.version_id)
        read_kw: Any = getattr(self, "read_kw", self.req_kw)  # older releases of s3fs have but one

        async def get(**span: str) -> Any:
            answer = await self._request("get_object", **read_kw, **span, **pinned)
            if self._details is not None and answer.get("ETag") != self._details.get("ETag", answer.get("ETag")):
                raise FileExpired(self.path, self._details["ETag"])
            return answer

        await self.fs.set_session()
        try:
            await self.fs.transfer.fetch(get, ranges, advance)
        except OSError as error:
            if code_of(error) in ("PreconditionFailed", "412"):
                raise FileExpired(self.path, self.details.get("ETag")) from error
            raise

    # -- requests ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _request(self) -> Call:
        """Makes requests for the object. It knows nothing of the file: an upload must not keep a dropped file alive."""
        fs, acl, extra = self.fs, {"ACL": self.acl} if self.acl else {}, self.s3_additional_kwargs
        payer = getattr(self, "_request_payer_kw", self.req_kw)
        named = {"Bucket": self.bucket, "Key": self.key}

        async def request(method: str, **kwargs: Any) -> Any:
            given = acl if method in ("create_multipart_upload", "put_object") else {}
            return await fs._call_s3(method, extra, payer, **named, **given, **kwargs)

        return request

    def _call_s3(self, method: str, *kwarglist: Any, **kwargs: Any) -> Any:
        payer = getattr(self, "_request_payer_kw", self.req_kw)
        _check_off_loop(self.fs)
        return self._start(self.fs._call_s3(method, self.s3_additional_kwargs, payer, *kwarglist, **kwargs)).result()

    def _abort_upload(self, seconds: float) -> None:
        writer = self.__dict__.get("_writer")
        if writer is None or self.fs.loop.is_closed():
            return
        future = self._start(writer.abandon())
        if not seconds or _on_loop(self.fs):
            return
        try:
            future.result(seconds)
        except Exception as error:  # what led here must not be hidden
            logger.warning("The unfinished upload to s3://%s could not be aborted: %s", self.path, error)

    def _start(self, coroutine: Any) -> Future[Any]:
        return _start(self.fs, coroutine)


def _start(fs: Any, coroutine: Any) -> Future[Any]:
    return asyncio.run_coroutine_threadsafe(coroutine, fs.loop)


def _start_sending(fs: Any, path: str, pid: int, coroutine: Any) -> Future[Any]:
    try:
        _check_off_loop(fs)
        if pid != os.getpid():
            msg = f"s3://{path} is being written by the process that opened it. Open another in this one."
            raise RuntimeError(msg)
    except RuntimeError:
        coroutine.close()
        raise
    return _start(fs, coroutine)


def _on_loop(fs: Any) -> bool:
    try:
        return asyncio.get_running_loop() is fs.loop
    except RuntimeError:
        return False


def _check_off_loop(fs: Any) -> None:
    if _on_loop(fs):
        msg = "A file cannot wait on the event loop that serves it. Use open_async, or another thread."
        raise RuntimeError(msg)


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
