"""Parts of an upload that the server copies from objects.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from s3fs.utils import FileExpired

from fsspec_csx.s3.client.error_mapping import changed
from fsspec_csx.s3.consistent_read import PinnedObject
from fsspec_csx.s3.part_sizes import LEAST_PART, part_size_for
from fsspec_csx.s3.transport.pool import PART
from fsspec_csx.s3.transport.request_body import MemoryBody, RequestBody

COPIED_PART = 32 * 2**20
"""Bytes of a part that is copied: larger ones may take longer than ``read_timeout``, and then are asked for again."""


@dataclass(frozen=True)
class CopySource:
    """One state of an object that parts are copied from.

    Attributes:
        version: None for the current one.
        etag: of the state; a part of another one is not copied.
        size: in bytes.
    """

    bucket: str
    key: str
    version: str | None
    etag: str
    size: int

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def named(self) -> dict[str, str]:
        """Which object it is, as the parameter ``CopySource`` of botocore takes it."""
        version = {"VersionId": self.version} if self.version else {}
        return {"Bucket": self.bucket, "Key": self.key, **version}

    @property
    def pinned(self) -> dict[str, str]:
        """The parameter by which no other state than this one is copied."""
        return {"CopySourceIfMatch": self.etag} if self.etag else {}

    def spans(self, part: int) -> list[CopiedSpan]:
        """All of it, in parts of so many bytes but for the last."""
        return [CopiedSpan(self, start, min(start + part, self.size)) for start in range(0, self.size, part)]


@dataclass(frozen=True)
class CopiedSpan:
    """Bytes between two positions of a source."""

    source: CopySource
    start: int
    end: int

    @property
    def length(self) -> int:
        """In bytes."""
        return self.end - self.start

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of UploadPartCopy."""
        whole = self.length == self.source.size
        span = {} if whole else {"CopySourceRange": f"bytes={self.start}-{self.end - 1}"}
        return {"CopySource": self.source.named, **span, **self.source.pinned}


class MergedSource:
    """Several objects as one, in parts of which the server copies those that lie in one object.

    Attributes:
        size: bytes of all.
        part: bytes of each part in which they are best written, but the last.
    """

    def __init__(self, fs: Any, sources: Sequence[CopySource]) -> None:
        self._fs = fs
        self._sources = [source for source in sources if source.size]
        self._ends = list(itertools.accumulate(source.size for source in self._sources))
        self.size = self._ends[-1] if self._ends else 0
        # What is as large as a part of a copy can be copied; smaller sources would all have to be read.
        largest = max((source.size for source in self._sources), default=0)
        self.part = part_size_for(self.size, COPIED_PART if largest > 2 * COPIED_PART else PART)
        assert self.part >= LEAST_PART

    async def body(self, start: int, end: int) -> RequestBody | CopiedSpan:
        """The bytes between two positions: a span that the server can copy if they are a part of one object."""
        spans = self._spans(start, end)
        if len(spans) == 1 and spans[0].length == end - start < self.size:
            return spans[0]
        memory = memoryview(bytearray(end - start))
        filled = 0
        for span in spans:
            await self._read(span, memory[filled : filled + span.length])
            filled += span.length
        return MemoryBody([memory])

    def _spans(self, start: int, end: int) -> list[CopiedSpan]:
        spans = []
        for source, behind in zip(self._sources, self._ends, strict=True):
            begin = behind - source.size
            if begin < end and start < behind:
                spans.append(CopiedSpan(source, max(start, begin) - begin, min(end, behind) - begin))
        return spans

    async def _read(self, span: CopiedSpan, memory: memoryview) -> None:
        source = span.source
        state = PinnedObject(self._fs, f"{source.bucket}/{source.key}", source.version, source.etag)
        try:
            await state.fill(memory, span.start, self._fs.request_size(span.length))
        except FileExpired as error:
            raise changed(str(source)) from error
