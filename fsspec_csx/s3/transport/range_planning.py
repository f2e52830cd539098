"""By which requests what is wanted of an object is best fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fsspec_csx.errors import TooLargeError
from fsspec_csx.s3.transport.byte_range import Check, RangeRequest

Span = tuple[int, memoryview]
"""A position in an object, in bytes, and the memory that is to be filled from there."""

# Bytes of a request of a large read. More, and a read has too few requests; fewer, and they take longer than the bytes.
MIN_REQUEST, MAX_REQUEST = 4 * 2**20, 32 * 2**20
# Of a read, at most: what is known of each takes memory, and a size that is told may be wrong.
_MOST_REQUESTS = 4096
# Spans that are closer than this, in bytes, are fetched by one request.
_GAP = 64 * 1024


def size_for(size: int, in_flight: int) -> int:
    """Bytes of each request of a read of so many, when so many requests go at a time."""
    return max(MIN_REQUEST, min(MAX_REQUEST, -(-size // in_flight)), -(-size // _MOST_REQUESTS))


def allocate(size: int, name: object) -> bytes:
    """Memory for what is said to be of so many bytes; the system gives it as it is filled.

    Args:
        size: in bytes.
        name: whose bytes will be in it.

    Raises:
        TooLargeError: a MemoryError, if there is not so much.
    """
    try:
        return bytes(size)
    except (MemoryError, OverflowError):
        reason = f"There is no memory for the {size:,} bytes that {name} has by what the server says."
        remedy = "Read it in parts, or into a file; if it is not so large, the server, or a proxy on the way, is wrong."
        raise TooLargeError(reason, remedy) from None


def coalesce(spans: Sequence[Span], part: int, check: Check | None = None) -> list[RangeRequest]:
    """The ranges by which spans are best fetched: near ones together, long ones in parts.

    Args:
        spans: in any order.
        part: the most bytes of a range.
        check: as of ``Range``.
    """
    ranges: list[RangeRequest] = []
    for number, (position, memory) in sorted(enumerate(spans), key=lambda each: each[1][0]):
        while len(memory):
            near = ranges and 0 <= position - ranges[-1].end <= _GAP and position - ranges[-1].start < part
            if not near:
                ranges.append(RangeRequest(position, check=check))
            room = part - (position - ranges[-1].start)
            ranges[-1].add(number, position, memory[:room])
            position, memory = position + len(memory[:room]), memory[room:]
    return ranges


def checksums(ranges: Sequence[RangeRequest], count: int, combine: Callable[[int, int, int], int]) -> list[int]:
    """The checksum of each of so many spans, from those of their parts.

    Args:
        combine: makes one checksum of that of some bytes, that of those that follow, and the number of the latter.
    """
    whole = [0] * count
    parts = sorted((each for one in ranges for each in one.checksums()), key=lambda each: each[1])
    for span, _, checksum, length in parts:
        whole[span] = combine(whole[span], checksum, length)
    return whole
