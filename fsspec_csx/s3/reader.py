"""ReadFile, the reading half of ``CSXFile``: it reads an object by parallel requests."""

from __future__ import annotations

import functools
import io
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from s3fs.core import S3File, version_id_kw
from s3fs.utils import FileExpired

from fsspec_csx.errors import ObjectNotFoundError
from fsspec_csx.s3 import cached_read
from fsspec_csx.s3.block_cache import CachedObject
from fsspec_csx.s3.client.error_mapping import code_of
from fsspec_csx.s3.consistent_read import BytesBuffer
from fsspec_csx.s3.put_object import Call
from fsspec_csx.s3.readahead import AHEAD_REQUEST, ReadAhead
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.checksum import CRC32, Algorithm, of_object
from fsspec_csx.s3.transport.event_loop import Work, check_off_loop, run_and_wait, submit
from fsspec_csx.s3.transport.learned_template import LearnedTemplate
from fsspec_csx.s3.transport.range_planning import Span, checksums, coalesce
from fsspec_csx.s3.transport.request_body import single_bytes
from fsspec_csx.s3.transport.threads import in_thread, in_thread_if_many
from fsspec_csx.s3.transport.transfer import PART, Transfer
from fsspec_csx.storage.threads import take

_PARALLEL_FROM = 2 * 2**20
_FOLLOWING = 64 * 1024
# The first large read of a zip file, after its end record, fetches this many times its size ahead.
_FIRST_AHEAD = 8
# Files of at most this size are fetched from the first read to their end: a near store's, and a far one's.
_SMALL_NEAR, _SMALL_FAR = 4 * 2**20, 16 * 2**20
# ``readline`` searches this many bytes at a time.
_LINE = 64 * 1024


class ReadFile(S3File):  # type: ignore[misc]
    """The reading half of ``CSXFile``, and the requests of both halves.

    Raises:
        ObjectNotFoundError: when opened for reading, if the object does not exist.
    """

    loc: int
    closed = True  # fsspec's property is slow, and each small read and write looks at it
    cache: Any = None
    _details: Any = None
    _recent_bytes: Callable[[int, int], bytes | None] = staticmethod(lambda start, length: None)
    _large_end = -(2**62)  # where the last large read ended

    def __init__(self, fs: Any, path: str, mode: str = "rb", **kwargs: Any) -> None:
        own = kwargs.get("cache_type") == ReadAhead.name
        self._details = kwargs.pop("details", None)
        self._alike = LearnedTemplate()  # set before the caches of fsspec, some of which read at once
        super().__init__(fs, path, mode, **(kwargs | {"cache_type": "none"} if own else kwargs))
        if mode != "rb":
            return
        if self._details is not None and self._details.get("type") == "directory":
            reason = f"There is no object s3://{self.path}, only objects below s3://{self.path}/."
            raise ObjectNotFoundError(reason, "Name one of them.")
        if own:
            self.cache = ReadAhead(self.blocksize, self._fetch_bytes, self._fetch_into, self.size, self._small_size)
            self._recent_bytes = self.cache.recent_bytes

    @property
    def details(self) -> Any:
        """The server's ``info`` of the object when it was opened; never from a cached listing."""
        if self._details is None:
            self._details = self.fs.info(self.path, refresh=True, checksum=True)
        return self._details

    @details.setter
    def details(self, value: Any) -> None:
        self._details = value
        self.size = value["size"]

    def readline(self) -> bytes:
        """Read up to and including the next line feed, or to the end."""
        # fsspec would copy a whole block for each line.
        return bytes(self.readuntil(b"\n", min(self.blocksize, _LINE)))

    def readlines(self) -> list[bytes]:
        """Read all lines to the end."""
        return io.BytesIO(self.read()).readlines()  # fsspec would return an empty line at the end

    def read(self, length: int | None = -1) -> bytes:
        """Read up to ``length`` bytes from the current position, or to the end."""
        if type(length) is int and (data := self._recent_bytes(self.loc, length)) is not None:
            self.loc += length
            return data
        found: bytes = super().read(-1 if length is None else length)
        return found

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position and return the bytes read, fewer than the buffer only at the end.

        A large buffer is filled by parallel requests, straight into its memory.

        Raises:
            s3fs.utils.FileExpired: an OSError, if the object was replaced since it was opened.
        """
        whole = single_bytes(buffer)
        if len(whole) < _PARALLEL_FROM and (data := self._recent_bytes(self.loc, len(whole))) is not None:
            whole[:] = data
            self.loc += len(data)
            return len(data)
        memory = whole[: max(0, self.size - self.loc)] if self.mode == "rb" and not self.closed else whole[:0]
        if len(memory) < _PARALLEL_FROM:
            data = self.read(len(whole))
            whole[: len(data)] = data
            return len(data)
        self._fill(memory)
        self.loc += len(memory)
        return len(memory)

    def _fill(self, memory: memoryview) -> None:
        """Fill a large buffer from the current position."""
        if not isinstance(self.cache, ReadAhead):
            self.readinto_many([(self.loc, memory)])
        else:
            with self.cache.lock:
                self._fill_ahead(memory, self.loc)

    def _fill_ahead(self, memory: memoryview, start: int) -> None:
        end = start + len(memory)
        beyond = self._bytes_beyond(start, end)
        taken = self.cache.take(start, end)
        here = min(taken[-1].end, end) - start if taken else 0
        rest: Work | None = None
        try:
            if here < len(memory):
                following = memoryview(bytearray(min(_FOLLOWING, self.cache.missing_from(end))))
                rest = self._begin_rest([(start + here, memory[here:]), (end, following)])
                rest.schedule()
                self.cache.put(end, following)
            if beyond:
                self.cache.fetch_beyond(end, beyond)
            self.cache.fill(memory[:here], start, taken, self._transfer.in_thread)
            if rest is not None:
                rest.result()
        except BaseException:
            if rest is not None:
                rest.end()  # no request may write to the caller's memory any more
            self.cache.clear()
            raise

    @property
    def _transfer(self) -> Transfer:
        check_off_loop(self.fs)
        if self.fs._s3 is None:  # another process opened the file
            self.fs.connect()
        made: Transfer = self.fs.transfer
        return made

    def _small_size(self) -> int:
        """Return the size up to which files are fetched from the first read to their end."""
        return _SMALL_FAR if self.fs._s3 is not None and self.fs.transfer.ahead_bytes else _SMALL_NEAR

    def _bytes_beyond(self, start: int, end: int) -> int:
        """Return how many bytes to fetch ahead after a large read."""
        goes_on, first = abs(start - self._large_end) <= _FOLLOWING, self._large_end < 0
        self._large_end = end
        if self.cache.blocksize < PART:
            return 0
        beyond: int = self._transfer.ahead_bytes
        if goes_on:
            return beyond
        # A reader of a zip file reads on after its directory, starting at the first large record.
        return min(beyond, _FIRST_AHEAD * (end - start) + _FOLLOWING) if first and self.cache.is_zip else 0

    def _begin_rest(self, spans: Sequence[Span]) -> Work:
        total = sum(len(memory) for _, memory in spans)
        part = self.fs.request_size(total)
        part = -(-total // max(1, round(total / part)))  # equal requests: no small one at the end
        check_off_loop(self.fs)
        return Work(self.fs.loop, functools.partial(self._fetch, spans, part))

    def readinto_many(
        self,
        spans: Sequence[Span],
        *,
        advance: Callable[[int], object] | None = None,
        crc32: bool = False,
        algorithm: Algorithm | None = None,
        total: int = 0,
    ) -> list[int]:
        """Fill many memories from many positions by parallel requests; the file's own position does not move.

        Args:
            spans: positions in bytes, each with the writable memory (contiguous, single bytes) to fill from there, in
                any order.
            advance: called in this thread with each number of bytes read.
            crc32: whether to compute the CRC-32 of each span during the download.
            algorithm: another checksum to compute instead.
            total: bytes of a larger read that these spans are part of; it sets the size of the requests.

        Returns:
            The checksum of each span, in the order of the spans; an empty list if no checksum was requested.

        Raises:
            ValueError: if a span reaches beyond the end of the file.
            s3fs.utils.FileExpired: an OSError, if the object was replaced since it was opened.
        """
        for position, memory in spans:
            if not 0 <= position <= position + len(memory) <= self.size:
                msg = f"s3://{self.path} has {self.size} bytes, not {len(memory)} from {position} on. Read less."
                raise ValueError(msg)
        part = self.fs.request_size(total or sum(len(memory) for _, memory in spans))
        algorithm = CRC32 if crc32 else algorithm
        progress: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        check_off_loop(self.fs)
        work = Work(self.fs.loop, functools.partial(self._fetch, spans, part, progress.put, algorithm))
        work.add_done_callback(lambda _: progress.put(None))
        try:
            work.schedule()
            while (count := take(progress)) is not None:
                if advance:
                    advance(count)
            found: list[int] = work.result()
        except BaseException:
            work.end()  # no request may write to the caller's memory any more
            raise
        return found

    def object_checksum(self) -> tuple[Algorithm, str] | None:
        """Return the algorithm and the value, as S3 writes it, of the object's checksum; None if the server has none.

        Raises:
            s3fs.utils.FileExpired: an OSError, if the object was replaced since it was opened.
        """
        if "checksum" not in self.details:  # the details come from s3fs, for a version, or from the caller
            version = version_id_kw(self.version_id)
            check_off_loop(self.fs)
            answer = run_and_wait(
                self.fs, functools.partial(self._request, "head_object", ChecksumMode="ENABLED", **version)
            )
            if (answer.get("ETag") or "") != (self.details.get("ETag") or ""):
                raise FileExpired(self.path, self.details.get("ETag"))
            self.details = {**self.details, "checksum": of_object(answer["ResponseMetadata"]["HTTPHeaders"])}
        found: tuple[Algorithm, str] | None = self.details["checksum"]
        return found

    def _fetch_range(self, start: int, end: int) -> bytes:
        check_off_loop(self.fs)
        data: bytes = run_and_wait(self.fs, functools.partial(self._read, start, end))
        return data

    def _fetch_bytes(self, start: int, end: int) -> Future[bytes]:
        return self._start(self._read(start, end))

    def _fetch_into(self, start: int, memory: memoryview) -> Future[memoryview]:
        async def fetch() -> memoryview:
            await self._fetch([(start, memory)], AHEAD_REQUEST)
            return memory

        return self._start(fetch())

    async def _read(self, start: int, end: int) -> bytes:
        end = min(end, self.size)  # some of fsspec's caches ask for whole blocks
        if start >= end:
            return b""
        await self.fs.set_session()
        with BytesBuffer(end - start, f"s3://{self.path}") as target:
            part = self.fs.request_size(end - start)
            if self.fs.transfer.ahead_bytes and not AHEAD_REQUEST < end - start == self.size:
                part = max(part, AHEAD_REQUEST)  # other reads run in parallel, so one request is enough
            await self._fetch([(start, target.memory)], part)
            return target.getvalue()

    async def _fetch(
        self,
        spans: Sequence[Span],
        part: int,
        advance: Callable[[int], object] = lambda count: None,
        algorithm: Algorithm | None = None,
    ) -> list[int]:
        pinned = version_id_kw(self.version_id)
        read_kw: Any = getattr(self, "read_kw", self.req_kw)  # older releases of s3fs have only req_kw
        known = self._details.get("ETag") if self._details is not None else None

        async def get(**span: str) -> Any:
            answer = await self._request("get_object", **read_kw, **span, **pinned)
            if known and answer.get("ETag") != known:  # some servers send no ETags
                raise FileExpired(self.path, known)
            return answer

        await self.fs.set_session()
        fetch = functools.partial(self.fs.transfer.fetch, get, alike=self._alike)
        ranges: Sequence[RangeRequest] | None = None
        check = algorithm.compute if algorithm else None
        try:
            if (blocks := await self._cached_blocks()) is not None:
                ranges = await cached_read.fetch(self.fs.transfer, fetch, blocks, spans, part, advance, check)
            if ranges is None:
                ranges = await in_thread_if_many(len(spans), coalesce, spans, part, check)
                await fetch(ranges, advance)
        except OSError as error:
            if code_of(error) in ("PreconditionFailed", "412"):
                raise FileExpired(self.path, self.details.get("ETag")) from error
            raise
        if known and any(each.etag not in (None, known) for each in ranges):
            raise FileExpired(self.path, known)
        found = list[int]()
        if algorithm:
            found = await in_thread_if_many(len(spans), checksums, ranges, len(spans), algorithm.combine)
        for each in ranges:
            each.forget_buffers()
        return found

    async def _cached_blocks(self) -> CachedObject | None:
        if self.fs.block_cache is None or not self._cache_names:
            return None
        return await in_thread(self.fs.block_cache.open, self._cache_names, self.size)

    @property
    def _cache_names(self) -> tuple[str, ...]:
        """The names that identify the object in the cache; empty if it must not be cached."""
        etag = self._details.get("ETag") if self._details is not None else None
        encrypted = any(name.startswith("SSECustomer") for name in self.s3_additional_kwargs)
        if not etag or encrypted:  # never store plain text of data that the caller encrypts with a key (SSE-C)
            return ()
        return self.fs._endpoint, self.bucket, self.key, self.version_id or "", etag

    def forget_cached(self) -> None:
        """Remove the object from the cache, because it was damaged before it was cached."""
        if self.fs.block_cache is not None and self._cache_names:
            self.fs.block_cache.remove(self._cache_names, self.size)

    # -- requests ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def _request(self) -> Call:
        """Makes requests for the object; it does not reference the file, so uploads keep no dropped file alive."""
        fs, acl, extra = self.fs, {"ACL": self.acl} if self.acl else {}, self.s3_additional_kwargs
        payer = getattr(self, "_request_payer_kw", self.req_kw)
        named = {"Bucket": self.bucket, "Key": self.key}

        async def request(method: str, **kwargs: Any) -> Any:
            given = acl if method in ("create_multipart_upload", "put_object") else {}
            return await fs._call_s3(method, extra, payer, **named, **given, **kwargs)

        return request

    def _start(self, coroutine: Any) -> Work:
        return submit(self.fs.loop, coroutine)
