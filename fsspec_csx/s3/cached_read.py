"""Reads through a ``BlockCache``: cached blocks come from its file; other blocks come from S3, and fill the cache."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Awaitable, Callable, Sequence

from zlib_ng import zlib_ng

from fsspec_csx.s3.block_cache import BLOCK, CachedObject
from fsspec_csx.s3.multipart import gather_or_cancel
from fsspec_csx.s3.transport.byte_range import Check, RangeRequest
from fsspec_csx.s3.transport.call_scope import finish_despite_cancel, scope
from fsspec_csx.s3.transport.range_planning import Span
from fsspec_csx.s3.transport.threads import in_thread, in_thread_if_many
from fsspec_csx.s3.transport.transfer import Transfer

# The most bytes of a range that is read from the cache.
_PART = 8 * 2**20
# How many threads read from the cache at a time.
_READERS = 8
# Bytes to fetch before checking again what other processes have cached meanwhile.
_ROUND = 2**30
# Seconds between checks while other processes fetch all missing blocks, and how long to wait without a new block.
_LOOK, _PATIENCE = 0.02, 2.0
# The most bytes to fetch in addition to those of the read; beyond that, the read bypasses the cache.
_MOST_PADDING = 64 * 2**20


class CachedRange(RangeRequest):
    """A range of whole blocks that is filled from the cache, or from S3 while the cache is filled too.

    Args:
        blocks: the cached object; bytes with another ETag are not cached.
        limit: the position up to which the range may grow.
    """

    def __init__(self, start: int, *, blocks: CachedObject, limit: int, check: Check | None = None) -> None:
        super().__init__(start, check=check)
        self.blocks, self.limit = blocks, limit
        self._checksum = 0
        self._local = False

    @property
    def end_of_blocks(self) -> int:
        return min(-(-self.end // BLOCK) * BLOCK, self.blocks.size)

    @property
    def missing(self) -> int:
        """How many blocks of the range are not cached."""
        return self.blocks.present(self.start, self.end).count(False)

    def fill(self) -> bool:
        """Fill the range from the cache, in a thread; drop a damaged block and return False; OSError if given up."""
        self.interrupt = lambda: None  # set before ``given_up`` is checked
        self._local = True
        try:
            while not self.complete:
                if not self._fill_block((self.start + self.filled) // BLOCK):
                    self.restart()
                    return False
            return True
        finally:
            self._local = False
            self.interrupt = None

    def _fill_block(self, block: int) -> bool:
        expected, checksum = self.blocks.checksum(block), 0
        left = min(BLOCK, self.blocks.size - block * BLOCK)
        while left and expected is not None:
            if self.given_up:
                msg = "The read was cancelled."
                raise OSError(msg)
            memory = self.next_buffer(left)
            count = self.blocks.read(memory, self.start + self.filled)
            if not count:
                break
            checksum = zlib_ng.crc32(memory[:count], checksum)
            self.advance(count)
            left -= count
        if left == 0 and checksum == expected:
            return True
        if expected is not None:
            self.blocks.drop(block)
        return False

    def advance(self, count: int) -> None:
        if not self._local and self.etag == self.blocks.etag:
            self._write(self.next_buffer(count))
        super().advance(count)

    def _write(self, memory: memoryview) -> None:
        position = self.start + self.filled
        while memory:
            piece = memory[: BLOCK - position % BLOCK]
            self._checksum = zlib_ng.crc32(piece, self._checksum if position % BLOCK else 0)
            written = self.blocks.write(piece, position)
            memory, position = memory[len(piece) :], position + len(piece)
            if written and (position % BLOCK == 0 or position == self.blocks.size):
                self.blocks.add((position - 1) // BLOCK, self._checksum)


def _plan(blocks: CachedObject, spans: Sequence[Span], part: int, check: Check | None) -> list[CachedRange] | None:
    """Make ranges of whole blocks that cover the spans; the blocks of each range are all cached, or all missing.

    Returns None if that would fetch far more than the spans need.
    """
    length = _length_by_start(blocks, spans, part)
    ranges: list[CachedRange] = []
    for number, (position, memory) in sorted(enumerate(spans), key=lambda each: each[1][0]):
        while len(memory):
            start = position // BLOCK * BLOCK
            if not ranges or not ranges[-1].end <= position < ranges[-1].limit or start > ranges[-1].end_of_blocks:
                ranges.append(CachedRange(start, blocks=blocks, limit=start + length(start), check=check))
            room = ranges[-1].limit - position
            ranges[-1].add(number, position, memory[:room])
            position, memory = position + room, memory[room:]
    for each in ranges:
        if each.end < each.end_of_blocks:
            each.add(0, each.end_of_blocks, memoryview(bytearray()))
    fetched = sum(each.length for each in ranges if each.missing)
    return ranges if fetched <= sum(len(memory) for _, memory in spans) + _MOST_PADDING else None


def _length_by_start(blocks: CachedObject, spans: Sequence[Span], part: int) -> Callable[[int], int]:
    """Return a function from a range's start to its length, such that its blocks are all cached or all missing."""
    first = min((start for start, _ in spans), default=0) // BLOCK
    present = blocks.present(first * BLOCK, max((start + len(memory) for start, memory in spans), default=0))
    most = {True: _PART // BLOCK, False: max(1, part // BLOCK)}

    def length(start: int) -> int:
        block = start // BLOCK - first
        kind = present[block]
        alike = itertools.takewhile(kind.__eq__, present[block : block + most[kind]])
        return sum(1 for _ in alike) * BLOCK

    return length


async def fetch(
    transfer: Transfer,
    fetch_ranges: Callable[[Sequence[RangeRequest], Callable[[int], object]], Awaitable[None]],
    blocks: CachedObject,
    spans: Sequence[Span],
    part: int,
    advance: Callable[[int], object],
    check: Check | None,
) -> list[CachedRange] | None:
    """Fill spans of an object through the cache; what another process is fetching is not fetched again.

    Returns the ranges, or None, with nothing filled, if they would fetch far more than the spans need.

    Args:
        fetch_ranges: fills ranges from S3; it is called with ``advance``.
        part: the most bytes of a request.
    """
    if (ranges := await in_thread_if_many(len(spans), _plan, blocks, spans, part, check)) is None:
        return None
    loop, rest, missing = asyncio.get_running_loop(), list(ranges), -1
    patient_until = loop.time() + _PATIENCE
    while rest:
        before = missing
        here, claimed, rest = await in_thread(_divide, rest, loop.time() < patient_until)
        try:
            claimed += await _fill(transfer, here, advance)
            if claimed:
                await in_thread(blocks.cache.make_room, sum(each.length for each in claimed), blocks.name)
                await fetch_ranges(claimed, advance)
        finally:
            for each in (*here, *claimed):
                each.blocks.release(each.start, each.end)
        missing = sum(each.missing for each in rest)
        if here or claimed or missing != before:
            patient_until = loop.time() + _PATIENCE
        if not here and not claimed:
            await asyncio.sleep(_LOOK)
    return ranges


def _divide(
    ranges: Sequence[CachedRange], patient: bool
) -> tuple[list[CachedRange], list[CachedRange], list[CachedRange]]:
    """Return the ranges that are cached, those that this process claims, and those left for later."""
    here: list[CachedRange] = []
    claimed: list[CachedRange] = []
    later: list[CachedRange] = []
    size = 0
    for each in ranges:
        if not each.missing:
            here.append(each)
        elif not patient or (size < _ROUND and each.blocks.claim(each.start, each.end)):
            # The process that held the claim before may have cached them.
            (claimed if each.missing else here).append(each)
            size += each.length
        else:
            later.append(each)
    return here, claimed, later


async def _fill(
    transfer: Transfer, ranges: Sequence[CachedRange], advance: Callable[[int], object]
) -> list[CachedRange]:
    """Fill ranges from the cache; return those that are damaged there."""
    damaged: list[CachedRange] = []
    slots = asyncio.Semaphore(_READERS)

    async def fill(wanted: CachedRange) -> None:
        async with slots:
            thread = scope().begin(wanted, functools.partial(transfer.in_thread, wanted.fill))
            if await asyncio.wrap_future(thread):
                advance(wanted.length)
            else:
                damaged.append(wanted)

    try:
        await gather_or_cancel(fill(each) for each in ranges)
    except BaseException:
        # The caller may reuse the memory when this raises, so nothing may write to it any more.
        await finish_despite_cancel(transfer.give_up_and_wait(ranges))
        raise
    return damaged
