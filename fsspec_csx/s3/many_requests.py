"""Calls for many objects: their requests are alike, so that botocore makes only the first of each kind and bucket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from s3fs.utils import FileExpired

from fsspec_csx.s3.consistent_read import PinnedObject
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.learned_template import LearnedTemplate
from fsspec_csx.s3.transport.request_body import RequestBody
from fsspec_csx.s3.transport.request_context import current, using
from fsspec_csx.s3.transport.signed_parts import SignedPuts

# Of so many objects at least.
_MANY = 3

Sender = Callable[..., Awaitable[Mapping[str, Any]]]
"""Sends a body; ``put`` does so by botocore."""


@dataclass
class ManyRequests:
    """What the requests of one call have in common, by buckets."""

    reads: dict[str, LearnedTemplate] = field(default_factory=dict)
    puts: dict[str, SignedPuts] = field(default_factory=dict)


@contextmanager
def many_requests(count: int) -> Iterator[None]:
    """Let the requests for so many objects within the block be made as the first of them was."""
    with using(many=ManyRequests() if count >= _MANY else None):
        yield


async def fetch_alone(fs: Any, found: PinnedObject, wanted: RangeRequest) -> None:
    """Fetch a range of an object by one request, which pins the object's state.

    Raises:
        FileExpired: an OSError, if it is of another state than the one that is pinned.
    """
    many: ManyRequests | None = current().many
    alike = None
    if many is not None and found.version is None:
        alike = many.reads.setdefault(found.bucket, LearnedTemplate())
    await fs.transfer.fetch(found.get, [wanted], alike=alike, key=found.key)
    found.etag = found.etag or wanted.etag
    if wanted.etag not in (None, found.etag):
        raise FileExpired(str(found), found.etag)


def sender(bucket: str, key: str, content_type: str | None) -> Sender | None:
    """What sends an object of the call as it has sent others; None if there is but one."""
    many: ManyRequests | None = current().many
    if many is None:
        return None
    puts = many.puts.setdefault(bucket, SignedPuts())

    async def send(body: RequestBody, put: Callable[[], Awaitable[Any]]) -> Mapping[str, Any]:
        return await puts.send(key, content_type, body=body, put=put)

    return send
