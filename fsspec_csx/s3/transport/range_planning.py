"""Planning of the requests that fetch parts of an object."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fsspec_csx.s3.transport.byte_range import Check, RangeRequest

Span = tuple[int, memoryview]
"""A position in an object, in bytes, and the buffer to fill from there."""

# Bytes of a request of a large read: larger ones leave too few in parallel; for smaller ones, latency dominates.
MIN_REQUEST, MAX_REQUEST = 4 * 2**20, 32 * 2**20
# With a far store, connections are slow: smaller requests divide small reads too, and let the last ones end soon.
_MIN_FAR, _MAX_FAR = 2**20, 8 * 2**20
# An object with so few more bytes is read to its end by one request: ending its connection early would take longer.
_LITTLE_MORE = 2**20
# The most requests of a read: each takes memory, and the size that the server reports may be wrong.
_MOST_REQUESTS = 4096
# Spans with smaller gaps between them, in bytes, share a request.
_GAP = 64 * 1024


def size_for(size: int, in_flight: int, *, far: bool = False) -> int:
    """Return the bytes of each request, for a read of ``size`` bytes with ``in_flight`` requests at a time."""
    of_one_round = -(-size // in_flight)
    if far:  # equal requests in full rounds, since the time of the last round counts
        rounds = max(1, -(-of_one_round // _MAX_FAR))
        wanted = max(_MIN_FAR, -(-of_one_round // (rounds * _GAP)) * _GAP)
    else:
        wanted = max(MIN_REQUEST, min(MAX_REQUEST, of_one_round))
    return max(wanted, -(-size // _MOST_REQUESTS))


def first_share(size: int, part: int) -> int:
    """Return how many bytes of an object its first request reads, if the others read ``part`` bytes each."""
    first = min(part, MIN_REQUEST)
    return size if size <= max(MIN_REQUEST, first + _LITTLE_MORE) else first


def coalesce(spans: Sequence[Span], part: int, check: Check | None = None) -> list[RangeRequest]:
    """Plan requests for spans: nearby spans share a request, and long spans are divided.

    Args:
        spans: in any order.
        part: the most bytes of a request.
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
            position, memory = position + room, memory[room:]
    return ranges


def checksums(ranges: Sequence[RangeRequest], count: int, combine: Callable[[int, int, int], int]) -> list[int]:
    """Combine the checksums of the parts of each span; see ``Algorithm`` for ``combine``."""
    whole = [0] * count
    parts = sorted((each for one in ranges for each in one.checksums()), key=lambda each: each[1])
    for span, _, checksum, length in parts:
        whole[span] = combine(whole[span], checksum, length)
    return whole
