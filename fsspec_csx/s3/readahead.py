"""ReadAhead: the cache of an open file; it fetches data in the background while the reader processes earlier data."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fsspec.caching import BaseCache

from fsspec_csx.s3.transport.memory import copy, new_buffer, populate

# The bytes of the first read, and the factor for each further sequential read.
_FIRST = 256 * 1024
_GROWTH = 4
# The smallest background request, and how many requests the window ahead of the reader is divided into.
_LEAST = 2**20
_SHARES = 8
# The largest gap that counts as sequential, and the bytes kept behind the reader: readers of zip files go to the end of
# each record, and back.
_GAP = 64 * 1024
_BEHIND = 2**20
# How zip files begin and end. torch.load reads the beginning, then the end and the directory before it, and then the
# records from front to back; so _TAIL bytes of the end are fetched at once, and _FIRST_RECORDS bytes of the records.
_ZIP_BEGIN, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_TAIL, _FIRST_RECORDS = 512 * 1024, 8 * 2**20
# A kept end of less than the first number is extended, by less than the second, to a read that begins before it.
_SMALL_TAIL, _LARGEST_DIRECTORY = 2**21, 2**23
# The chunks that are fetched ahead of large reads, in requests of AHEAD_REQUEST bytes.
_CHUNK = 8 * 2**20
AHEAD_REQUEST = 4 * 2**20


@dataclass
class Chunk:
    """Bytes of the file that have arrived or are in flight.

    Attributes:
        start: position of the first byte.
        end: position after the last.
        data: the future that returns them.
        lent: the buffer that holds them, if it is reusable.
    """

    start: int
    end: int
    data: Future[Any]
    lent: memoryview | None = None


class ReadAhead(BaseCache):  # type: ignore[misc]
    """Fetches what follows the last read before it is needed; the longer the sequential reads go on, the more.

    It also keeps some bytes before the position, for small steps back. A read elsewhere discards all that, and
    fetches little more than its own bytes. The end of the file, if it is read by a jump, is kept until the file is
    closed.

    Args:
        ahead: the most bytes to fetch ahead, except after large reads.
        fetch: starts to fetch the bytes between two positions.
        fetch_into: starts to fill a buffer from a position on.
        size: of the file, in bytes.
    """

    name = "parallel"

    def __init__(
        self,
        ahead: int,
        fetch: Callable[[int, int], Future[Any]],
        fetch_into: Callable[[int, memoryview], Future[Any]],
        size: int,
    ) -> None:
        super().__init__(ahead, lambda start, end: fetch(start, end).result(), size)
        self._start, self._start_into = fetch, fetch_into
        self._free: list[memoryview] = []
        self._chunks: deque[Chunk] = deque()
        self._window = 0
        self._tail = b""
        self._recent: tuple[int, bytes] = (0, b"")  # the chunk that was read last, and its position
        self._lock = threading.RLock()
        self._pid = os.getpid()

    @property
    def is_zip(self) -> bool:
        """Whether the end record of a zip file was read."""
        return _ZIP_END in self._tail[-_GAP:]

    def recent_bytes(self, start: int, length: int) -> bytes | None:
        """Return bytes of the chunk that was read last, or None if it has not all of them; it needs no lock."""
        position, data = self._recent
        first = start - position
        return data[first : first + length] if 0 <= first < first + length <= len(data) else None

    @property
    def lock(self) -> threading.RLock:
        """The lock that each read holds, so that no thread reuses a buffer that another thread still reads."""
        self._forget_parents()
        return self._lock

    def _fetch(self, start: int | None, stop: int | None) -> bytes:
        start = start or 0
        stop = self.size if stop is None else min(stop, self.size)
        if start >= stop:
            return b""
        with self.lock:
            if (data := self._read_tail(start, stop)) is not None:
                return data
            self._forget_before(start)
            if self._chunks:
                self._fetch_ahead(stop)
            else:
                self._window = 0
                self._add(start, min(max(stop, start + min(_FIRST, self.blocksize)), self.size))
            return self._read_or_clear(start, stop)

    def take(self, start: int, stop: int) -> list[Chunk]:
        """Hand over the chunks of a large range."""
        self._forget_before(start)
        taken = [chunk for chunk in self._chunks if chunk.start < stop and chunk.end > start]
        while self._chunks and self._chunks[0].end <= stop:
            self._chunks.popleft()
        return taken

    def fill(
        self, memory: memoryview, start: int, taken: Sequence[Chunk], in_thread: Callable[..., Future[None]]
    ) -> None:
        """Fill memory from chunks that were taken; the first chunk contains the byte at ``start``.

        ``in_thread`` runs a function in another thread: allocating the pages takes longer than copying the bytes.
        """
        stop = start + len(memory)
        half = [memory[len(memory) // 2 :]]
        pages = in_thread(lambda: populate(half.pop())) if len(memory) >= _CHUNK else None
        try:
            for chunk in taken:
                first, last = max(start, chunk.start), min(stop, chunk.end)
                target = memory[first - start : last - start]
                populate(target)  # while the bytes are in flight
                copy(target, memoryview(chunk.data.result())[first - chunk.start : last - chunk.start])
                if chunk.lent is not None and chunk.end <= stop and self._chunks and self._chunks[-1].end < self.size:
                    self._free.append(chunk.lent)
        except BaseException:
            for chunk in taken:
                chunk.data.cancel()
            raise
        finally:
            if pages is not None and not pages.cancel():
                pages.result()
            half.clear()  # a cancelled call may stay in the queue, and must not keep the caller's memory

    def fetch_beyond(self, start: int, ahead: int) -> None:
        """Fetch ``ahead`` bytes from a position on, in chunks of equal size, unless they are cached or in flight.

        The cached chunks must reach up to the position.
        """
        begun, end = self._chunks[-1].end if self._chunks else start, min(start + ahead, self.size)
        while begun < end and (end - begun >= _CHUNK or end == self.size):
            lent = self._free.pop() if self._free else new_buffer(_CHUNK)
            stop = min(begun + _CHUNK, end)
            self._chunks.append(Chunk(begun, stop, self._start_into(begun, lent[: stop - begun]), lent))
            begun = stop
        if begun == self.size:
            self._free.clear()  # nothing is left to fetch

    def put(self, start: int, data: memoryview) -> None:
        """Keep bytes that follow a taken range; their data may arrive later, but before the next read."""
        self._window = 0
        done: Future[Any] = Future()
        done.set_result(data)
        self._chunks.append(Chunk(start, start + len(data), done))

    def _read_tail(self, start: int, stop: int) -> bytes | None:
        """Return bytes near the end of the file; None if they are part of sequential reads, or not near the end."""
        begin = self.size - len(self._tail)
        if start < begin:
            if self._continues(start):
                return None
            if not self._tail and self.size - start <= min(_GAP, self.blocksize):
                begin = min(start, max(0, self.size - min(_TAIL, self.blocksize))) if self._begins_as_zip else start
                self._tail = self._fetch_now(begin, self.size)
                self._fetch_first_records()
            elif 0 < len(self._tail) < _SMALL_TAIL and begin - _GAP <= stop and begin - start < _LARGEST_DIRECTORY:
                begin, end = max(0, start - _GAP), begin
                self._tail = self._fetch_now(begin, end) + self._tail
            else:
                return None
        self._recent = begin, self._tail
        return self._tail[start - begin : stop - begin]

    @property
    def _begins_as_zip(self) -> bool:
        """Whether the first bytes of a zip file are cached."""
        first = self._chunks[0] if self._chunks else None
        return first is not None and first.start == 0 and bytes(first.data.result()[:4]) == _ZIP_BEGIN

    def _fetch_first_records(self) -> None:
        """Fetch the first records of a zip file of which the beginning and the end were read."""
        if self.is_zip and self._begins_as_zip:
            self._window = min(_FIRST_RECORDS, self.blocksize)
            self._fetch_ahead(self._chunks[-1].end)

    def close(self) -> None:
        """Discard everything, and cancel the requests."""
        self._tail = b""
        self.clear()

    def clear(self) -> None:
        """Discard all chunks, and cancel their requests."""
        self._forget_parents()
        self._recent = 0, b""
        for chunk in self._chunks:
            chunk.data.cancel()
        self._chunks.clear()
        self._free.clear()
        self._window = 0

    def _forget_before(self, start: int) -> None:
        self._forget_parents()
        while len(self._chunks) > 1 and self._chunks[0].end + _BEHIND <= start:
            self._chunks.popleft()
        if not self._continues(start):
            self.clear()

    def _continues(self, start: int) -> bool:
        """Whether a read continues those before it."""
        return bool(self._chunks) and self._chunks[0].start <= start <= self._chunks[-1].end + _GAP

    def _forget_parents(self) -> None:
        """In a forked child, discard the chunks of the parent, whose requests never finish here."""
        if self._pid != os.getpid():
            self._pid, self._window = os.getpid(), 0
            self._lock = threading.RLock()  # a thread of the parent may hold the other
            self._chunks.clear()
            self._free.clear()

    def _add(self, start: int, end: int) -> None:
        self._chunks.append(Chunk(start, end, self._start(start, end)))

    def _fetch_ahead(self, stop: int) -> None:
        """Fetch the missing bytes of a read up to ``stop``, and those that follow."""
        last = next((chunk for chunk in self._chunks if chunk.end >= stop), None)
        if last is None or not last.data.done():  # the reader has to wait
            self._window = min(max(self._window * _GROWTH, _LEAST), self.blocksize)
        end = min(stop + self._window, self.size)
        step = max(_LEAST, self._window // _SHARES)
        while (begun := self._chunks[-1].end) < stop or end - begun >= step or begun < end == self.size:
            self._add(begun, min(max(stop, begun + step), self.size))

    def _read_or_clear(self, start: int, stop: int) -> bytes:
        try:
            return self._read_chunks(start, stop)
        except BaseException:
            self.clear()  # so that the next read requests the failed chunks again
            raise

    def _read_chunks(self, start: int, stop: int) -> bytes:
        pieces, done = [], start
        for chunk in list(self._chunks):
            first, last = max(start, chunk.start), min(stop, chunk.end)
            if first >= last:
                continue
            if first != done:
                break
            done = last
            data = chunk.data.result()
            if type(data) is bytes:  # a buffer that is lent may be filled again
                self._recent = chunk.start, data
            pieces.append(data if last - first == len(data) else data[first - chunk.start : last - chunk.start])
        if done != stop:  # another thread reads the same file, and has changed the chunks
            return self._fetch_now(start, stop)
        if len(self._chunks) == 1 and self._chunks[0].end == stop and stop - self._chunks[0].start > _LEAST:
            self.clear()  # the reader has read all of it
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def _fetch_now(self, start: int, stop: int) -> bytes:
        work = self._start(start, stop)
        try:
            return bytes(work.result())
        except BaseException:
            work.cancel()
            raise
