"""Requests for many objects in one call: botocore makes one for each bucket, and the others follow its template."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fsspec_csx.s3.consistent_read import PinnedObject
from fsspec_csx.s3.multipart import gather_or_cancel
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.compat import run_in_chunks
from fsspec_csx.s3.transport.learned_template import WORTHWHILE, LearnedTemplate
from fsspec_csx.s3.transport.queued_requests import QueuedRead, QueuedWrite
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_queue import RequestQueue


class ObjectGet(QueuedRead):
    """A request that reads one of the objects.

    Args:
        state: of the object.
        number: its index in the call.
    """

    def __init__(
        self, state: PinnedObject, wanted: RangeRequest, accept: Callable[[RangeRequest], bool], number: int
    ) -> None:
        super().__init__(state.key, wanted, accept)
        self.state, self.number = state, number
        self.bucket = None if state.version else state.bucket


class ObjectPut(QueuedWrite):
    """A request that writes one of the objects.

    Args:
        bucket: of the object; None if botocore must make its request.
        number: its index in the call.
    """

    def __init__(
        self,
        bucket: str | None,
        key: str,
        content_type: Callable[[], str | None],
        open_body: Callable[[], RequestBody | None],
        number: int,
    ) -> None:
        super().__init__(key, content_type, open_body)
        self.bucket, self.number = bucket, number


R = TypeVar("R", bound=ObjectGet | ObjectPut)


def _is_settled(fs: Any, request: ObjectGet | ObjectPut) -> bool:
    """Return whether it is known if the server accepts the checksum headers of such requests."""
    put = isinstance(request, ObjectPut)
    return (fs.transfer.takes_checksums("put_object") if put else fs._read_checksums.supported) is not None


async def run_requests(
    fs: Any,
    requests: Sequence[R],
    alone: Callable[[R], Awaitable[None]],
    finished: Callable[[R], object],
    most: int | None = None,
) -> None:
    """Make requests for objects.

    Args:
        alone: makes one through botocore: the first of each bucket, and each that failed with the template.
        finished: called on the event loop for each of the others.
        most: how many at a time.
    """
    buckets: dict[str, list[R]] = {}
    others: list[R] = []
    for each in requests:
        (others if each.bucket is None else buckets.setdefault(each.bucket, [])).append(each)
    for bucket in [name for name, group in buckets.items() if len(group) < WORTHWHILE]:
        others += buckets.pop(bucket)
    await gather_or_cancel(
        [
            *(_of_bucket(fs, group, alone, finished, most) for group in buckets.values()),
            run_in_chunks([alone(each) for each in others], batch_size=most),
        ]
    )


async def _of_bucket(
    fs: Any,
    requests: Sequence[R],
    alone: Callable[[R], Awaitable[None]],
    finished: Callable[[R], object],
    most: int | None,
) -> None:
    await fs.set_session()
    slots = fs.transfer.slots
    slots.expect_small(1)
    try:
        await RequestQueue(
            fs.transfer,
            LearnedTemplate(),
            requests,
            alone,
            finished,
            settled=lambda: _is_settled(fs, requests[0]),
            most=most,
            shared=True,
        ).run()
    finally:
        slots.expect_small(-1)
