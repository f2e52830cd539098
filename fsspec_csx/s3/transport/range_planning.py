"""Which requests fetch the wanted parts of an object best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fsspec_csx.errors import TooLargeError
from fsspec_csx.s3.transport.byte_range import Check, RangeRequest

Span = tuple[int, memoryview]
"""A position in an object, in bytes, and the buffer to fill from there."""

# Bytes of a request of a large read: with more, too few requests go at a time; with fewer, their latency dominates.
MIN_REQUEST, MAX_REQUEST = 4 * 2**20, 32 * 2**20
# With a far store, whose connections are slow: a small read is divided too, and the last requests end soon.
_MIN_FAR, _MAX_FAR = 2**20, 8 * 2**20
# Of a read, at most: each takes memory, and the size that the server names may be wrong.
_MOST_REQUESTS = 4096
# Spans that are closer than this, in bytes, are fetched by one request.
_GAP = 64 * 1024


def size_for(size: int, in_flight: int, *, far: bool = False) -> int:
    """Bytes of each request, for a read of ``size`` bytes with so many requests at a time."""
    least, most = (_MIN_FAR, _MAX_FAR) if far else (MIN_REQUEST, MAX_REQUEST)
    return max(least, min(most, -(-size // in_flight)), -(-size // _MOST_REQUESTS))


def allocate(size: int, name: object) -> bytes:
    """Allocate memory; the system hands it out as it is filled.

    Args:
        size: in bytes.
        name: of the object, for messages.

    Raises:
        TooLargeError: a MemoryError, if there is not enough.
    """
    try:
        return bytes(size)
    except (MemoryError, OverflowError):
        reason = f"There is not enough memory for {name}, which has {size:,} bytes by the server's response."
        remedy = "Read it in parts, or into a file; if it is not so large, the server, or a proxy on the way, is wrong."
        raise TooLargeError(reason, remedy) from None


def coalesce(spans: Sequence[Span], part: int, check: Check | None = None) -> list[RangeRequest]:
    """Make requests of spans: near ones share a request, long ones are divided.

    Args:
        spans: in any order.
        part: the most bytes of a range.
        check: see ``RangeRequest``.
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
    """Combine the checksums of the parts of each span.

    Args:
        combine: see ``Algorithm``.
    """
    whole = [0] * count
    parts = sorted((each for one in ranges for each in one.checksums()), key=lambda each: each[1])
    for span, _, checksum, length in parts:
        whole[span] = combine(whole[span], checksum, length)
    return whole
