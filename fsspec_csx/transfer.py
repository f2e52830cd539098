"""Bytes from S3 straight into memory: parts of an object read side by side, by threads that copy nothing.

botocore signs each request, retries it and reads its errors, as for every other one; only the moving of the bytes is
taken from it, at its event ``before-send``, where a handler may answer in place of botocore's own connection:
https://docs.aws.amazon.com/boto3/latest/guide/events.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from aiobotocore.awsrequest import AioAWSResponse
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies

PART = 8 * 2**20
IN_FLIGHT = 8


@dataclass
class _Target:
    """Where the bytes of an answer shall go, and how that stands."""

    memory: memoryview
    thread: Future[AioAWSResponse] | None = None
    filled: bool = False
    given_up: bool = False


# What the running task asks for; None where botocore's own connection shall answer.
_asked: ContextVar[_Target | None] = ContextVar("asked", default=None)


class Transfer:
    """The threads and connections of the bulk reads of one client.

    Args:
        client: the aiobotocore client whose GetObject requests are to be answered.
        verify: as of botocore: True, False, or the path of a certificate bundle.
    """

    def __init__(self, client: Any, verify: bool | str) -> None:
        config = client.meta.config
        self._session = URLLib3Session(
            verify=verify,
            proxies=get_environ_proxies(client.meta.endpoint_url) if config.proxies is None else config.proxies,
            timeout=(config.connect_timeout, config.read_timeout),
            max_pool_connections=IN_FLIGHT,
            client_cert=config.client_cert,
            proxies_config=config.proxies_config,
        )
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="fsspec_csx")
        client.meta.events.register("before-send.s3.GetObject", self._answer)

    async def read(self, get: Callable[[str], Awaitable[Any]], start: int, memory: memoryview) -> None:
        """Fill memory with the bytes of an object from a position on, several parts at a time.

        Args:
            get: makes a GetObject request for a ``Range``, and returns botocore's answer.
            start: position of the first byte.
            memory: writable and contiguous, of single bytes; the object must reach as far.

        Raises:
            Exception: what ``get`` raised for the first part that failed; the others are given up.
        """
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def read_part(offset: int, target: _Target) -> None:
            async with slots:
                _asked.set(target)
                first = start + offset
                answer = await get(f"bytes={first}-{first + len(target.memory) - 1}")
                if not target.filled:  # another client of the filesystem answered, one of another region
                    target.memory[:] = await answer["Body"].read()

        targets = {offset: _Target(memory[offset : offset + PART]) for offset in range(0, len(memory), PART)}
        parts = [asyncio.ensure_future(read_part(*each)) for each in targets.items()]
        try:
            await asyncio.gather(*parts)
        finally:
            await _give_up(parts, list(targets.values()))

    async def _answer(self, request: Any, **_: Any) -> AioAWSResponse | None:
        target = _asked.get()
        if target is None:
            return None
        target.thread = self._threads.submit(self._exchange, request, target)
        return await asyncio.wrap_future(target.thread)

    def _exchange(self, request: Any, target: _Target) -> AioAWSResponse:
        answer = self._session.send(request)
        moved = 200 <= answer.status_code < 300
        body = b""
        try:
            if moved:
                _fill(target, answer.raw)
            else:
                body = answer.raw.read()
        except TimeoutError as error:
            raise ReadTimeoutError(endpoint_url=request.url, error=error) from error
        except (OSError, HTTPException) as error:
            answer.raw.close()
            raise ConnectionClosedError(endpoint_url=request.url, request=request, error=error) from error
        finally:
            answer.raw.release_conn()
        target.filled = moved
        return AioAWSResponse(request.url, answer.status_code, answer.headers, _Body(body))


async def _give_up(parts: Sequence[asyncio.Future[None]], targets: Sequence[_Target]) -> None:
    """End what still runs, and return when no thread writes to the memory any more: it is the caller's again."""
    for part in parts:
        part.cancel()
    for target in targets:
        target.given_up = True
    running = [asyncio.wrap_future(each.thread) for each in targets if each.thread and not each.thread.done()]
    await asyncio.gather(*running, return_exceptions=True)


def _fill(target: _Target, response: Any) -> None:
    """Read a body of exactly the target's length, by the system's own calls on its memory: urllib3 would copy."""
    memory = target.memory
    length = response.headers.get("Content-Length")
    if length is not None and int(length) != len(memory):
        response.close()
        msg = f"{length} bytes came where {len(memory)} were asked for."
        raise OSError(msg)
    filled = 0
    while filled < len(memory):
        count = 0 if target.given_up else response._fp.readinto(memory[filled:])
        if not count:
            msg = f"The connection ended after {filled} of {len(memory)} bytes."
            raise OSError(msg)
        filled += count


class _Body:
    """What botocore reads of an answer whose bytes have gone elsewhere, or that is an error."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, amount: int | None = None) -> bytes:
        data, self._data = self._data, b""
        return data

    def close(self) -> None:
        pass
