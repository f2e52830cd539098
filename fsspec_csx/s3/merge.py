"""MergedSource: the bytes of several objects one after the other, in parts, most of them copied by the server."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from s3fs.utils import FileExpired

from fsspec_csx.s3.client.error_mapping import changed
from fsspec_csx.s3.consistent_read import PinnedObject
from fsspec_csx.s3.part_copies import COPIED_PART, CopiedSpan, CopySource
from fsspec_csx.s3.part_sizes import LEAST_PART, part_size_for
from fsspec_csx.s3.transport.pool import PART
from fsspec_csx.s3.transport.range_planning import coalesce
from fsspec_csx.s3.transport.request_body import MemoryBody, RequestBody


class MergedSource:
    """Several objects as one.

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
                spans.append(source.span(max(start, begin) - begin, min(end, behind) - begin))
        return spans

    async def _read(self, span: CopiedSpan, memory: memoryview) -> None:
        source = span.source
        state = PinnedObject(self._fs, f"{source.bucket}/{source.key}", source.version)
        state.etag = source.etag or None
        part = self._fs.request_size(len(memory))
        try:
            await self._fs.transfer.fetch(state.get, coalesce([(span.start, memory)], part))
        except FileExpired as error:
            raise changed(str(source)) from error
