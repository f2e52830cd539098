"""How many requests are in flight: decided on a simulated link, shared by transfers, and lowered by a busy server."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from fsspec_csx.s3.transport.concurrency import MIN_REQUESTS, ConcurrencyLimit, RequestSlots

pytestmark = pytest.mark.adaptive

MB = 1e6


@dataclass
class Link:
    """A link that requests share.

    Attributes:
        each: bytes a second of one request.
        most: bytes a second of all together.
        seconds: before the head of an answer.
    """

    each: float
    most: float
    seconds: float

    def rate(self, requests: int) -> float:
        """Bytes a second of so many requests at a time."""
        return min(requests * self.each, self.most)


def simulated(limit: ConcurrencyLimit, link: Link, seconds: float, start: float = 0.0) -> list[int]:
    """Keep as many requests in flight as may be; the number in each round."""
    for _ in range(MIN_REQUESTS):
        limit.answered(link.seconds)
    now, numbers = start, []
    while now < start + seconds:
        now += limit.round_seconds
        numbers.append(limit.limit)
        limit.measured(now, link.rate(limit.limit), cpu=0.2)
    return numbers


@pytest.mark.parametrize(
    ("link", "least", "most"),
    [
        (Link(25 * MB, 10_000 * MB, 0.02), 128, 128),  # a far store gives each connection a share
        (Link(85 * MB, 20_000 * MB, 0.1), 128, 128),
        (Link(25 * MB, 10_000 * MB, 0.001), 128, 128),  # answers are fast, but more requests bring more all the same
        (Link(100 * MB, 800 * MB, 0.001), MIN_REQUESTS, MIN_REQUESTS),  # ten fill the link
        (Link(100 * MB, 1600 * MB, 0.001), 20, 20),
        (Link(25 * MB, 1200 * MB, 0.02), 64, 64),  # the first number for a far store fills it
    ],
)
def test_number_follows_the_link(link: Link, least: int, most: int) -> None:
    """Requests are added while they bring more bytes a second, and not kept where they do not."""
    limit = ConcurrencyLimit(most=128)
    numbers = simulated(limit, link, 10)
    steady = sorted(numbers)[len(numbers) // 4 : -len(numbers) // 4]
    assert least <= steady[0] <= steady[-1] <= most


def test_far_store_is_known_by_its_first_answers() -> None:
    """Where the first answers take long, the number jumps at once; the bound is reached within half a second."""
    for processors, first in ((1, 32), (2, 64), (16, 64)):
        limit = ConcurrencyLimit(most=128, processors=processors)
        assert not limit.seems_far
        limit.answered(0.03)
        assert limit.seems_far
        assert limit.limit == MIN_REQUESTS
        limit.answered(0.03)
        assert limit.far
        assert limit.limit == first
        assert simulated(limit, Link(85 * MB, 1e12, 0.03), 0.5)[-1] == 128
    # One fast answer is enough: the others were slow for another reason.
    for most in (4, 25, 64, 128):
        near = ConcurrencyLimit(most=most)
        for seconds in (0.03, 0.03, 0.001):
            near.answered(seconds)
        assert not near.far
        assert not near.seems_far
        assert near.limit == MIN_REQUESTS


def test_near_store_is_known_by_one_fast_answer() -> None:
    """One answer that is faster than any far store's shows a near one; otherwise, two answers do."""
    cases = [((), False), ((0.001,), True), ((0.007,), False), ((0.007, 0.007), True), ((0.03,), False)]
    for answers, is_near in cases:
        limit = ConcurrencyLimit(most=128)
        for seconds in answers:
            limit.answered(seconds)
        assert limit.is_near == is_near


def test_store_that_is_near_after_all() -> None:
    """A fast answer corrects the first ones also during a trial; one a little faster than they does not."""
    limit = ConcurrencyLimit(most=128)
    for seconds in (0.03, 0.03, 0.007):
        limit.answered(seconds)
    assert limit.far
    assert limit.seems_far
    assert limit.limit == 64
    for step in range(2):
        limit.measured(step * 0.1, 100 * MB, cpu=0.2)
    assert limit.limit == 128
    limit.answered(0.001)
    assert not limit.far
    assert limit.limit == MIN_REQUESTS


def test_many_small_requests() -> None:
    """Calls with many small requests get twice as many at a time of a far store, unless that is known to be busy."""
    limit = ConcurrencyLimit(most=128)
    limit.expect_small(1)
    assert limit.limit == MIN_REQUESTS  # no answer has come yet
    for _ in range(2):
        limit.answered(0.03)
    assert limit.limit == 128
    limit.expect_small(1)
    limit.expect_small(-1)
    assert limit.limit == 128
    limit.expect_small(-1)
    assert limit.limit == 64
    limit.expect_small(1)
    assert limit.limit == 128
    limit.throttled(1.0)
    limit.expect_small(-1)
    limit.expect_small(1)
    assert limit.limit == 64  # that the store was busy counts for more
    # The first answer takes longer, as it includes the connection; the second shows that the store is near.
    near = ConcurrencyLimit(most=128)
    near.answered(0.03)
    near.expect_small(1)
    assert near.limit == 128
    near.answered(0.001)
    assert near.limit == MIN_REQUESTS
    near.expect_small(-1)
    assert near.limit == MIN_REQUESTS


def test_refusals_show_no_distance() -> None:
    """An answer that the store is busy is fast, but does not make the store a near one."""
    slots = RequestSlots()
    slots.allow(128)
    for _ in range(2):
        slots.answered(0.03)
    before = slots.limit
    for status in (503, 429):
        slots.answered(0.001, status)
    assert slots.seems_far
    assert slots.limit == before // 2


@pytest.mark.parametrize("most", [1, 4, 12, 200])
def test_bound(most: int) -> None:
    """No trial goes beyond ``most``; what is below the first number bounds each filesystem by itself."""
    limit = ConcurrencyLimit(most=most)
    numbers = simulated(limit, Link(25 * MB, 1e12, 0.02), 20)
    assert max(numbers) == max(most, MIN_REQUESTS)


def test_busy_processors_stop_the_growth() -> None:
    """Where this process would have no processor left, more requests are not tried."""
    for cpu_of_each, number in ((0.095, MIN_REQUESTS), (0.05, MIN_REQUESTS), (0.01, 8 * MIN_REQUESTS)):
        limit = ConcurrencyLimit(most=128)
        for step in range(100):
            limit.measured(step * 0.05, limit.limit * MB, cpu=limit.limit * cpu_of_each)
        assert limit.limit == number


def test_busy_store() -> None:
    """Throttling halves the number, once for a burst of answers; afterwards it recovers step by step."""
    limit = ConcurrencyLimit(most=64)
    link = Link(25 * MB, 1e12, 0.02)
    simulated(limit, link, 1)
    assert limit.limit == 64
    for _ in range(20):
        limit.throttled(1.0)
    assert limit.limit == 32
    for number in range(8):
        limit.throttled(1.2 + number * 0.15)
    assert limit.limit == 1
    numbers = simulated(limit, link, 6, start=2.5)
    assert numbers == sorted(numbers)
    assert all(after <= max(before + 1, 1.15 * before) for before, after in itertools.pairwise(numbers))
    assert numbers[-1] == 64


def test_store_that_stays_busy() -> None:
    """A store that throttles above a number is kept near it, not pushed beyond it again and again."""
    limit = ConcurrencyLimit(most=64)
    link = Link(25 * MB, 1e12, 0.02)
    simulated(limit, link, 1)
    now, refused, rounds = 1.0, 0, 0
    while now < 60:
        now += limit.round_seconds
        rounds += 1
        if limit.limit > 24:
            refused += 1
            limit.throttled(now)
        else:
            limit.measured(now, link.rate(limit.limit), cpu=0.2)
    assert refused < rounds / 20
    assert limit.limit > 8
