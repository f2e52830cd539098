"""ReadAhead: the cache of an open file; it fetches data in the background while the reader processes earlier data."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
_SHARES = 4
# The largest gap that counts as sequential, and the bytes kept behind the reader: readers of zip files go to the end of
# each record, and back.
_GAP = 64 * 1024
_BEHIND = 2**20
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
    fetches little more than its own bytes.

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
        self._lock = threading.RLock()
        self._pid = os.getpid()

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

    def fill(self, memory: memoryview, start: int, taken: Sequence[Chunk]) -> None:
        """Fill memory from chunks that were taken; the first chunk contains the byte at ``start``."""
        stop = start + len(memory)
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

    def clear(self) -> None:
        """Discard all chunks, and cancel their requests."""
        self._forget_parents()
        for chunk in self._chunks:
            chunk.data.cancel()
        self._chunks.clear()
        self._free.clear()
        self._window = 0

    def _forget_before(self, start: int, behind: int = _BEHIND) -> None:
        self._forget_parents()
        while len(self._chunks) > 1 and self._chunks[0].end + behind <= start:
            self._chunks.popleft()
        if self._chunks and not self._chunks[0].start <= start <= self._chunks[-1].end + _GAP:
            self.clear()

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
        if stop > self._chunks[-1].end or not self._chunks[-1].data.done():
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

    def _overlapping(self, start: int, stop: int) -> Iterator[tuple[Chunk, int, int]]:
        """Yield the chunks of a range, each with the file positions where their overlap begins and ends."""
        for chunk in list(self._chunks):
            if chunk.start < stop and chunk.end > start:
                yield chunk, max(start, chunk.start), min(stop, chunk.end)

    def _read_chunks(self, start: int, stop: int) -> bytes:
        pieces, done = [], start
        for chunk, first, last in self._overlapping(start, stop):
            if first != done:
                break
            done = last
            data = chunk.data.result()
            pieces.append(data if last - first == len(data) else data[first - chunk.start : last - chunk.start])
        if done != stop:  # another thread reads the same file, and has changed the chunks
            return bytes(self._start(start, stop).result())
        if len(self._chunks) == 1 and self._chunks[0].end == stop and stop - self._chunks[0].start > _LEAST:
            self.clear()  # the reader has read all of it
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)
