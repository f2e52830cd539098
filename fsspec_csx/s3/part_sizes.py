"""The sizes of the parts of an object.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
"""

from __future__ import annotations

from fsspec_csx.s3.transport.transfer import PART

PARTS = 10_000
"""The most parts of an object."""

LEAST_PART, LARGEST_PART = 5 * 2**20, 5 * 2**30
"""The smallest and the largest part in bytes; only the last part may be smaller."""

FIRST_PARTS = 5_000
"""How many parts of an object of unknown size have the size of the first part."""

_MIB = 2**20
# After the first parts, the size doubles every 490 parts: with the smallest first part, 10,000 parts then reach 5 TiB.
# A larger step would keep the parts equal for longer, and need more memory for the last ones.
_STEP = 490
# An object of up to this size has as many parts as possible: they are sent in parallel, and the first is full sooner.
_SMALL = 64 * _MIB
# From this expected size on, parts are twice as large, because each request has a cost. To a far store, a part takes
# long, and the last ones are the end of the upload.
_LARGE, _LARGE_FAR = 256 * _MIB, 4096 * _MIB
# From this size on, parts for a store in the same network are so large, unless they take memory.
_LARGE_LOCAL, _PART_LOCAL = 1024 * _MIB, 64 * _MIB


def part_size(number: int, first: int = LEAST_PART) -> int:
    """Return the bytes of a part of an object of unknown size.

    The first 5,000 parts have one size, as some stores (Cloudflare R2) require: with 5 MiB each,
    together up to 24 GiB. After them, the size doubles every 490 parts, up to 5 GiB.

    Args:
        number: of the part, from 1.
        first: bytes of part 1.
    """
    doublings = max(0, -(-(number - FIRST_PARTS) // _STEP))
    return min(first << doublings, LARGEST_PART)


def first_part_size(expected: int, chosen: int | None, *, far: bool = False, local: bool = False) -> int:
    """Return the bytes of the first part of an object of about ``expected`` bytes, so that all parts have one size.

    Args:
        expected: bytes of the object.
        chosen: bytes of the first part, if the caller chooses; they are only raised where necessary.
        far: whether the store answers slowly.
        local: whether the store is in the same network, and no part is copied.
    """
    if chosen is not None:
        return min(max(chosen, -(-expected // FIRST_PARTS)), LARGEST_PART)
    least = PART if expected < (_LARGE_FAR if far else _LARGE) else 2 * PART
    if local and expected >= _LARGE_LOCAL:
        least = _PART_LOCAL
    parts = max(expected // (LEAST_PART if expected <= _SMALL else least), 1)
    # Equal parts, as a short last one would be a request more.
    return min(max(-(-expected // min(parts, FIRST_PARTS)), LEAST_PART), LARGEST_PART)


def part_size_for(size: int, wanted: int | None = None) -> int:
    """Return the bytes of each part of an object of ``size`` bytes, except the last.

    Args:
        wanted: the part size that the caller asks for; None for one that is worth a request, or for as many parts as
            possible of a small object that has more than one.

    Raises:
        ValueError: if an object cannot be so large.
    """
    least = -(-size // PARTS)
    if least > LARGEST_PART:
        msg = f"{size} bytes are more than an object of S3 can have, which is {PARTS * LARGEST_PART}. Divide them."
        raise ValueError(msg)
    if not wanted and PART < size <= _SMALL:
        return first_part_size(size, None)
    chosen = max(wanted, least, LEAST_PART) if wanted else max(PART, -(-least // _MIB) * _MIB)
    return min(chosen, LARGEST_PART)
