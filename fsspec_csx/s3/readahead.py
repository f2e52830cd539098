"""ReadAhead: the cache of an open file; it fetches data in the background while the reader processes earlier data."""

from __future__ import annotations

import bisect
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fsspec.caching import BaseCache

from fsspec_csx.s3.transport.memory import copy, new_buffer, populate

# The least bytes of a read elsewhere, and the factor for each further sequential read.
_FIRST = 256 * 1024
_GROWTH = 4
# The smallest background request, and how many requests the window ahead of the reader is divided into.
_LEAST = 2**20
_SHARES = 8
# The largest gap that counts as sequential, and the most bytes kept besides those ahead: readers of zip files go to the
# end of each record, and back; readers of HDF5 files to the index, and back.
_GAP = 64 * 1024
_KEPT = 32 * 2**20
# From the ninth open file on, each keeps less: programs open thousands of files, and read a little of each.
_FILES = 8
# The most chunks kept besides those ahead: each read looks at all of them, and they are small if block_size is.
_MOST_KEPT = 256
# How zip files begin and end. torch.load reads the beginning, then the end and the directory before it, and then the
# records from front to back; so _TAIL bytes of the end are fetched at once, and _FIRST_RECORDS bytes of the records.
_ZIP_BEGIN, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_TAIL, _FIRST_RECORDS = 512 * 1024, 8 * 2**20
# The chunks that are fetched ahead of large reads, in requests of AHEAD_REQUEST bytes.
_CHUNK = 8 * 2**20
AHEAD_REQUEST = 4 * 2**20


_filled: weakref.WeakSet[ReadAhead] = weakref.WeakSet()  # those that have chunks


@dataclass(eq=False)
class Chunk:
    """Bytes of the file that have arrived or are in flight.

    Attributes:
        start: position of the first byte.
        end: position after the last.
        data: the future that returns them.
        lent: the buffer that holds them, if it is reusable.
        window: how many bytes were to be ahead of the reader when they were requested.
        used: the number of the last read that used them, or requested them.
    """

    start: int
    end: int
    data: Future[Any]
    lent: memoryview | None = None
    window: int = 0
    used: int = 0


class ReadAhead(BaseCache):  # type: ignore[misc]
    """Fetches what follows the last read before it is needed; the longer the sequential reads go on, the more.

    A read elsewhere fetches little more than its own bytes, or all up to the end of a small file. Some bytes of other
    places are kept, for steps back, and nothing that is kept or in flight is fetched again.

    Args:
        ahead: the most bytes to fetch ahead, except after large reads.
        fetch: starts to fetch the bytes between two positions.
        fetch_into: starts to fill a buffer from a position on.
        size: of the file, in bytes.
        small: returns the size up to which files are fetched from the first read to their end.
    """

    name = "parallel"

    def __init__(
        self,
        ahead: int,
        fetch: Callable[[int, int], Future[Any]],
        fetch_into: Callable[[int, memoryview], Future[Any]],
        size: int,
        small: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(ahead, lambda start, end: fetch(start, end).result(), size)
        self._start, self._start_into, self._small = fetch, fetch_into, small
        self._free: list[memoryview] = []
        self._chunks: list[Chunk] = []  # from front to back, without overlaps
        self._reads = self._last = 0  # how many there were, and where the last one ended
        self.is_zip = False  # whether the end record of a zip file was read
        self._recent: tuple[int, bytes] = (0, b"")  # the chunk that was read last, and its position
        self._lock = threading.RLock()
        self._pid = os.getpid()

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
            try:
                self._reads += 1
                self._request(start, stop)
                data = self._read_chunks(start, stop)
                self._last = stop
                self._forget_before(stop)
                return data
            except BaseException:
                self.clear()  # so that the next read requests the failed chunks again
                raise

    def take(self, start: int, stop: int) -> list[Chunk]:
        """Hand over the chunks of the beginning of a large range, and discard the others within it."""
        end = min(self._run_end(start), stop)
        within = [chunk for chunk in self._chunks if chunk.start < stop and chunk.end > start]
        self._chunks = [chunk for chunk in self._chunks if chunk not in within or chunk.end > stop]
        self._forget_before(stop)
        return [chunk for chunk in within if chunk.start < end]

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
                if chunk.lent is not None and chunk.end <= stop and self._run_end(stop) < self.size:
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
        end = min(start + ahead, self.size)
        while (begun := self._run_end(start)) < end and (end - begun >= _CHUNK or end == self.size):
            lent = self._free.pop() if self._free else new_buffer(_CHUNK)
            stop = min(begun + _CHUNK, end, self._next_start(begun))
            self._add(Chunk(begun, stop, self._start_into(begun, lent[: stop - begun]), lent, window=ahead))
        if begun == self.size:
            self._free.clear()  # nothing is left to fetch

    def put(self, start: int, data: memoryview) -> None:
        """Keep bytes that follow a taken range; their data may arrive later, but before the next read."""
        done: Future[Any] = Future()
        done.set_result(data)
        if data:
            self._add(Chunk(start, start + len(data), done))

    def missing_from(self, start: int) -> int:
        """Return how many bytes from a position on are neither cached nor in flight."""
        return self._next_start(start) - start if self._run_end(start) == start else 0

    def _request(self, start: int, stop: int) -> None:
        """Start to fetch the missing bytes of a read, and those that will follow."""
        if self.size - start <= min(_GAP, self.blocksize) and self._run_end(start) == start:
            self._fetch_tail()
        elif self.size <= min(self._small(), self.blocksize, self._most_kept):
            self._extend(start, stop, self.size - stop)
        elif before := self._before(start):
            self._continue(before, stop)
        else:
            first = min(start + min(_FIRST, self.blocksize), self.size)
            if self._next_start(start) <= stop + _GAP < self.size + _GAP:  # the reader goes backwards
                start = max(0, start - min(_GAP, self.blocksize))
            self._extend(start, max(stop, first), 0)

    def _continue(self, before: Chunk, stop: int) -> None:
        """Fetch ahead of sequential reads."""
        end = self._run_end(before.start)
        run = [each for each in self._chunks if before.start <= each.start < end]
        last = next((each for each in run if each.end >= stop), None)
        window = max(each.window for each in run)
        if last is None or not last.data.done():  # the reader has to wait
            most = self.blocksize
            if end != self._run_end(self._last - 1):  # it alternates between places
                most = min(most, max(window, self._most_kept // max(_SHARES, 2 * self._count_places())))
            run[-1].window = window = min(max(window * _GROWTH, _LEAST), most)
        self._extend(before.start, stop, window)

    def _fetch_tail(self) -> None:
        """Fetch the end of the file, and the first records of a zip file of which the beginning was read."""
        first = self._chunks[0] if self._chunks and self._chunks[0].start == 0 else None
        zipped = first is not None and bytes(first.data.result()[:4]) == _ZIP_BEGIN
        begin = max(0, self.size - min(_TAIL if zipped else _GAP, self.blocksize))
        self._extend(begin, self.size, 0)
        tail = self._chunks[-1]
        if zipped:
            self._extend(0, self._run_end(0), min(_FIRST_RECORDS, self.blocksize))
        self.is_zip = _ZIP_END in bytes(tail.data.result()[-_GAP:])

    def _extend(self, start: int, stop: int, window: int) -> None:
        """Fetch what is missing from a position up to ``stop``, and ``window`` bytes ahead."""
        end, step = min(stop + window, self.size), max(_LEAST, window // _SHARES)
        while (begun := self._run_end(start)) < stop or end - begun >= step or begun < end == self.size:
            until = min(max(stop, min(begun + step, end)), self._next_start(begun))
            self._add(Chunk(begun, until, self._start(begun, until), window=window))

    def clear(self) -> None:
        """Discard everything, and cancel the requests."""
        self._forget_parents()
        self._recent = 0, b""
        for chunk in self._chunks:
            chunk.data.cancel()
        self._chunks.clear()
        self._free.clear()
        _filled.discard(self)

    def _before(self, start: int) -> Chunk | None:
        """Return the chunk that a read continues."""
        chunk = next((each for each in reversed(self._chunks) if each.start <= start), None)
        if chunk is None:
            return None
        # A small jump forward from the last read costs less than another request.
        gap = self._small() // 4 if chunk.end == self._run_end(self._last - 1) else _GAP
        return chunk if start <= chunk.end + min(gap, self.blocksize) else None

    def _run_end(self, start: int) -> int:
        """Return up to which position the bytes from another one on are cached or in flight."""
        for chunk in self._chunks:
            if chunk.start > start:
                break
            if chunk.end > start:
                start = chunk.end
        return start

    def _count_places(self) -> int:
        """Return how many runs of adjacent chunks are kept."""
        return 1 + sum(one.end != other.start for one, other in itertools.pairwise(self._chunks))

    def _next_start(self, start: int) -> int:
        """Return where the next chunk behind a position starts, or the size of the file."""
        return next((chunk.start for chunk in self._chunks if chunk.start > start), self.size)

    @property
    def _most_kept(self) -> int:
        """How many bytes this file may keep besides those ahead."""
        return _KEPT * _FILES // max(_FILES, len(_filled))

    def _add(self, chunk: Chunk) -> None:
        _filled.add(self)
        chunk.used = self._reads
        bisect.insort(self._chunks, chunk, key=lambda each: each.start)

    def _forget_before(self, position: int) -> None:
        """Discard the least recently used of the chunks that are not ahead of a position."""
        end = self._run_end(position)
        ahead = 1 + max((each.window for each in self._chunks if position < each.end <= end), default=0)
        end = min(end, position + ahead)
        others = [each for each in self._chunks if each.end <= position or each.start >= end]
        others.sort(key=lambda each: each.used, reverse=True)
        kept = sum(each.end - each.start for each in others)
        while kept > self._most_kept or len(others) > _MOST_KEPT:
            chunk = others.pop()
            kept -= chunk.end - chunk.start
            chunk.data.cancel()
            self._chunks.remove(chunk)
            if self._recent[0] == chunk.start:
                self._recent = 0, b""

    def _forget_parents(self) -> None:
        """In a forked child, discard the chunks of the parent, whose requests never finish here."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.RLock()  # a thread of the parent may hold the other
            self._chunks.clear()
            self._free.clear()

    def _read_chunks(self, start: int, stop: int) -> bytes:
        pieces, done = [], start
        for chunk in list(self._chunks):
            if chunk.end <= start or chunk.start >= stop:
                continue
            first, last = max(start, chunk.start), min(stop, chunk.end)
            if first != done:
                break
            done, chunk.used = last, self._reads
            data = chunk.data.result()
            if type(data) is bytes:  # a buffer that is lent may be filled again
                self._recent = chunk.start, data
            pieces.append(data if last - first == len(data) else data[first - chunk.start : last - chunk.start])
        if done != stop:  # another thread reads the same file, and has changed the chunks
            return self._fetch_now(start, stop)
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def _fetch_now(self, start: int, stop: int) -> bytes:
        work = self._start(start, stop)
        try:
            return bytes(work.result())
        except BaseException:
            work.cancel()
            raise
