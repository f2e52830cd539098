"""Reads of many objects by one call: their requests are alike, so that botocore makes only the first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from s3fs.utils import FileExpired

from fsspec_csx.s3.consistent_read import PinnedObject
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.learned_template import LearnedTemplate
from fsspec_csx.s3.transport.request_context import current, using

# Of so many objects at least.
_MANY = 3


@contextmanager
def many_reads(count: int) -> Iterator[None]:
    """Let the reads of so many objects within the block make their requests as the first of them does."""
    with using(alike={} if count >= _MANY else None):
        yield


async def fetch_alone(fs: Any, found: PinnedObject, wanted: RangeRequest) -> None:
    """Fetch a range of an object by one request, which pins the object's state.

    Raises:
        FileExpired: an OSError, if it is of another state than the one that is pinned.
    """
    of_buckets = current().alike
    alike = None
    if of_buckets is not None and found.version is None:
        alike = of_buckets.setdefault(found.bucket, LearnedTemplate(found.key))
    await fs.transfer.fetch(found.get, [wanted], alike=alike, key=found.key)
    found.etag = found.etag or wanted.etag
    if wanted.etag not in (None, found.etag):
        raise FileExpired(str(found), found.etag)
