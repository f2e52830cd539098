"""Templates that requests of different times share."""

from __future__ import annotations

import asyncio

from fsspec_csx.s3.transport.learned_template import LearnedTemplate


def test_of_another_event_loop() -> None:
    """What another event loop was about to learn, as at a fork, is learned anew; nobody waits for it."""
    learned = LearnedTemplate()

    async def begin() -> bool:
        unknown = learned.unknown
        learned.begin()
        return unknown and not learned.unknown

    assert asyncio.run(begin())
    assert asyncio.run(begin())


def test_requests_that_only_botocore_makes() -> None:
    """After some templates that could not be made, none is tried any more."""

    async def attempts() -> int:
        learned, count = LearnedTemplate(), 0
        while learned.unknown:
            learned.begin()
            learned.settle(None)
            count += 1
        assert await learned.known() is None
        return count

    assert asyncio.run(attempts()) == 5
