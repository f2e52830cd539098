"""How an object is divided into parts.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

from fsspec_csx.transfer import PART

PARTS = 10_000
"""The most parts of an object."""

LEAST_PART, LARGEST_PART = 5 * 2**20, 5 * 2**30
"""The least bytes of a part that is not the last, and the most."""

_MIB = 2**20
# Parts before the size of a part is doubled; so 10,000 of them reach 5 TiB, which any S3 takes, from the least first
# part on.
_OF_ONE_SIZE = 950


def part_size(number: int, first: int = PART) -> int:
    """Bytes of a part of an object of unknown size.

    Args:
        number: of the part, from 1.
        first: bytes of part 1.
    """
    return min(first << ((number - 1) // _OF_ONE_SIZE), LARGEST_PART)


def part_size_for(size: int, wanted: int | None = None) -> int:
    """Bytes of each part, but the last, of an object of known size.

    Args:
        size: of the object, in bytes.
        wanted: bytes of a part that the caller asks for; None to choose the least that are worth a request.

    Raises:
        ValueError: if it is larger than any object can be.
    """
    least = -(-size // PARTS)
    if least > LARGEST_PART:
        msg = f"{size} bytes are more than an object of S3 can have, which is {PARTS * LARGEST_PART}. Divide them."
        raise ValueError(msg)
    chosen = max(wanted, least, LEAST_PART) if wanted else max(PART, -(-least // _MIB) * _MIB)
    return min(chosen, LARGEST_PART)
