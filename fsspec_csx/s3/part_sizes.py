"""How an object is divided into parts.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

from fsspec_csx.s3.transport.pool import PART

PARTS = 10_000
"""The most parts of an object."""

LEAST_PART, LARGEST_PART = 5 * 2**20, 5 * 2**30
"""The least bytes of a part that is not the last, and the most."""

FIRST_PARTS = 5_000
"""How many parts of an object of unknown size have the size of the first."""

_MIB = 2**20
# Then the size doubles each time that so many parts more are full: 10,000 of them reach 5 TiB from the least first part
# on. A larger number would keep the parts equal for longer, and need more memory for the last ones.
_STEP = 490
# The parts of an object of so few bytes are as many as may be: they are sent side by side, and the first begins sooner.
_SMALL = 64 * _MIB
# Of an object that is expected to have so many bytes, parts are twice as large: each request costs some work.
_LARGE = 256 * _MIB


def part_size(number: int, first: int = PART) -> int:
    """Bytes of a part of an object of unknown size.

    The first 5,000 parts are of one size, as some stores (Cloudflare R2) take no others: of 8 MiB each, unless the
    caller chooses, so up to 39 GiB. From there on the size doubles every 490 parts, up to 5 GiB.

    Args:
        number: of the part, from 1.
        first: bytes of part 1.
    """
    doublings = max(0, -(-(number - FIRST_PARTS) // _STEP))
    return min(first << doublings, LARGEST_PART)


def first_part_size(expected: int, first: int, *, chosen: bool) -> int:
    """Bytes of the first part of an object of about so many bytes, so that all its parts are of one size.

    Args:
        expected: bytes of the object.
        first: bytes of the first part of any object.
        chosen: whether the caller asked for ``first``; then it is only made larger where it must be.
    """
    if not chosen and expected <= _SMALL:
        parts = max(expected // LEAST_PART, 1)
        return max(-(-expected // parts), LEAST_PART)
    least = -(-expected // FIRST_PARTS // _MIB) * _MIB
    return min(max(first if chosen or expected < _LARGE else 2 * first, least), LARGEST_PART)


def part_size_for(size: int, wanted: int | None = None) -> int:
    """Bytes of each part, but the last, of an object of known size; ValueError if no object can be so large.

    Args:
        wanted: bytes of a part that the caller asks for; None to choose the least that are worth a request.
    """
    least = -(-size // PARTS)
    if least > LARGEST_PART:
        msg = f"{size} bytes are more than an object of S3 can have, which is {PARTS * LARGEST_PART}. Divide them."
        raise ValueError(msg)
    chosen = max(wanted, least, LEAST_PART) if wanted else max(PART, -(-least // _MIB) * _MIB)
    return min(chosen, LARGEST_PART)
