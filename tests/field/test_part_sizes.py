"""The sizes of parts: equal as long as possible, and never too small for the largest object."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fsspec_csx.s3.part_sizes import (
    FIRST_PARTS,
    LARGEST_PART,
    LEAST_PART,
    PARTS,
    first_part_size,
    part_size,
    part_size_for,
)
from fsspec_csx.s3.transport.transfer import PART

MIB, TIB = 2**20, 2**40
firsts = st.integers(LEAST_PART, LARGEST_PART)


@given(firsts)
def test_unknown_size(first: int) -> None:
    """The first 5,000 parts are of one size; then it doubles, and 10,000 parts hold 5 TiB."""
    sizes = [part_size(number, first) for number in range(1, PARTS + 1)]
    assert set(sizes[:FIRST_PARTS]) == {first}
    assert all(after in (before, min(2 * before, LARGEST_PART)) for before, after in itertools.pairwise(sizes))
    assert sum(sizes) >= 5 * TIB


def test_documented_steps() -> None:
    """By default a size changes first after 24 GiB, and then every 490 parts."""
    sizes = [part_size(number) for number in range(1, PARTS + 1)]
    changes = [number for number in range(1, PARTS) if sizes[number] != sizes[number - 1]]
    assert changes == [5000 + 490 * step for step in range(10)]
    assert sizes[0] == 5 * MIB
    assert sum(sizes[:5000]) // 2**30 == 24


@given(firsts, st.integers(0, 400))
def test_memory_stays_a_small_share(first: int, step: int) -> None:
    """A part has no more than a hundredth of what was sent before it grew, unless the first was as large."""
    number = 1 + step * 25
    before = sum(part_size(each, first) for each in range(1, number))
    assert part_size(number, first) <= max(first, before // 100)


@given(st.integers(1, PARTS * LARGEST_PART))
def test_known_size(size: int) -> None:
    """One size fits all of an object whose length is known."""
    part = part_size_for(size)
    assert (LEAST_PART if PART < size <= 64 * MIB else PART) <= part <= LARGEST_PART
    assert -(-size // part) <= PARTS


@given(st.integers(PART + 1, 64 * MIB))
def test_known_size_of_small_objects(size: int) -> None:
    """A small object of more than one part has as many equal ones as one of unknown size of which that is expected."""
    assert part_size_for(size) == first_part_size(size, None)


@given(st.integers(1, FIRST_PARTS * LARGEST_PART), st.none() | firsts)
def test_expected_size(expected: int, chosen: int | None) -> None:
    """Parts for about so many bytes are of one size, and no other than was chosen unless they must be."""
    part = first_part_size(expected, chosen)
    assert LEAST_PART <= part <= LARGEST_PART
    assert -(-expected // part) <= FIRST_PARTS
    if chosen is not None:
        assert part == max(chosen, -(-expected // FIRST_PARTS))
    elif expected > 64 * MIB:
        assert part >= PART


@given(st.integers(64 * MIB + 1, FIRST_PARTS * PART), st.booleans())
def test_equal_parts(expected: int, far: bool) -> None:
    """No part of a large object is much smaller than the others: it would be a request more."""
    part = first_part_size(expected, None, far=far)
    parts = -(-expected // part)
    assert parts * part - expected < parts
    assert part <= 2 * PART * 17 // 16


def test_expected_size_by_distance() -> None:
    """The parts of a large object become larger from a size on that depends on the store."""
    assert first_part_size(248 * MIB, None) == PART
    assert first_part_size(256 * MIB, None) == 2 * PART
    assert first_part_size(4088 * MIB, None, far=True) == PART
    assert first_part_size(4096 * MIB, None, far=True) == 2 * PART
    assert first_part_size(4096 * MIB, PART, far=True) == PART
    assert first_part_size(1023 * MIB, None, local=True) < 17 * MIB
    assert first_part_size(1024 * MIB, None, local=True) == 64 * MIB
    assert first_part_size(1024 * MIB, PART, local=True) == PART


@given(st.integers(1, 64 * MIB))
def test_expected_size_of_small_objects(expected: int) -> None:
    """As many parts as may be, about equal; one below twice the least."""
    part = first_part_size(expected, None)
    parts = -(-expected // part)
    assert parts == max(expected // LEAST_PART, 1)
    assert parts * part - expected < parts or parts == 1
