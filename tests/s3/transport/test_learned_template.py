"""Templates that requests at different times share."""

from __future__ import annotations

import asyncio
import contextlib

from fsspec_csx.s3.transport.learned_template import LearnedTemplate
from fsspec_csx.s3.transport.request_template import ReadTemplate


async def nothing() -> None:
    """A request that ends before it is sent."""


def test_of_another_event_loop() -> None:
    """A template that another event loop was about to learn, as at a fork, is learned again; nothing waits for it."""
    learned = LearnedTemplate()

    async def begin() -> bool:
        unknown, first = learned.unknown, learned.learn(lambda: asyncio.sleep(99), ReadTemplate)
        begun = unknown and not learned.unknown
        first.cancel()
        return begun

    assert asyncio.run(begin())
    assert asyncio.run(begin())


def test_first_request_that_is_cancelled() -> None:
    """Who waits for the template does not wait for ever when the first request is cancelled before it begins."""

    async def work() -> None:
        learned = LearnedTemplate()
        first = learned.learn(nothing, ReadTemplate)
        first.cancel()
        assert await learned.known() is None
        with contextlib.suppress(asyncio.CancelledError):
            await first
        assert learned.unknown

    asyncio.run(work())


def test_requests_that_only_botocore_makes() -> None:
    """After some templates that could not be made, none is tried any more."""

    async def attempts() -> int:
        learned, count = LearnedTemplate(), 0
        while learned.unknown:
            await learned.learn(nothing, ReadTemplate)
            assert await learned.known() is None
            count += 1
        assert await learned.known() is None
        return count

    assert asyncio.run(attempts()) == 5
