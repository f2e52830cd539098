"""Appending: the object as it was when it was opened, and the bytes that follow it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsspec_csx.s3.client.error_mapping import changed, code_of
from fsspec_csx.s3.object_attributes import locks, of_new_state, source_key, tagging, unless_named
from fsspec_csx.s3.part_copies import CopySource
from fsspec_csx.s3.put_object import Call
from fsspec_csx.s3.transport.pool import Transfer
from fsspec_csx.s3.transport.range_planning import coalesce

# Parts of the object that was there, at most: the others are for what is appended.
_COPIED_PARTS = 2_000
_MIB = 2**20
# The codes of stores that write on no condition.
_UNCONDITIONAL = {"501", "NotImplemented"}
# The errors of a read from an object that was replaced.
_CHANGED = {"412", "416", "InvalidRange", "PreconditionFailed"}


@dataclass(frozen=True)
class AppendTarget:
    """The object that a file appends to, as it was when the file was opened.

    Attributes:
        found: whether there was one.
        part: bytes of each part of the new object.
        copied: parameters of UploadPartCopy for the parts that the server copies.
        tail: the bytes behind them, fewer than a part has.
        kept: what the object has besides its bytes, and the new one gets too.
    """

    found: bool
    etag: str
    size: int
    part: int
    copied: list[dict[str, Any]]
    tail: memoryview
    kept: dict[str, Any]

    @property
    def conditions(self) -> dict[str, str]:
        """On which the new object takes its place: nothing else may have been written meanwhile."""
        if not self.found:
            return {"IfNoneMatch": "*"}
        return {"IfMatch": self.etag} if self.etag else {}


async def find_append_target(
    call: Call, transfer: Transfer, bucket: str, key: str, part: int, named: Mapping[str, Any]
) -> AppendTarget:
    """Look up what is to be appended to, and read its end.

    Args:
        call: makes requests for the object.
        part: bytes of a part, at least.
        named: the options of the call and the filesystem, which prevail over what the object has.

    Raises:
        ObjectChangedError: if the object changes meanwhile.
    """
    try:
        head = await call("head_object")
    except FileNotFoundError:
        return AppendTarget(False, "", 0, part, [], memoryview(b""), {})
    size, etag = head["ContentLength"], head.get("ETag") or ""
    part = max(part, -(-size // _COPIED_PARTS // _MIB) * _MIB)
    source = CopySource(bucket, key, None, etag, size)
    start = size // part * part
    spans = source.spans(part)[: start // part]
    copied = [{**span.parameters, **source_key(named)} for span in spans]
    tail = memoryview(bytearray(size - start))
    if tail:
        await _read(call, transfer, source, start, tail)
    kept = unless_named({**of_new_state(head), **locks(head), **await tagging(call, str(source))}, named)
    return AppendTarget(True, etag, size, part, copied, tail, kept)


async def _read(call: Call, transfer: Transfer, source: CopySource, start: int, memory: memoryview) -> None:
    get = functools.partial(call, "get_object", **({"IfMatch": source.etag} if source.etag else {}))
    try:
        await transfer.fetch(get, coalesce([(start, memory)], transfer.request_size(len(memory))))
    except OSError as error:
        if isinstance(error, FileNotFoundError) or code_of(error) in _CHANGED:
            raise changed(str(source)) from error
        raise


def with_conditions(call: Call, etag: str, target: str) -> Call:
    """Requests like those of ``call``; a store that writes on no condition is asked for the ETag before the write."""

    async def request(method: str, **parameters: Any) -> Any:
        try:
            return await call(method, **parameters)
        except OSError as error:
            if code_of(error) not in _UNCONDITIONAL or not {"IfMatch", "IfNoneMatch"} & parameters.keys():
                raise
        try:
            now = (await call("head_object")).get("ETag") or ""
        except FileNotFoundError:
            now = ""
        if now != etag:
            raise changed(target)
        return await call(method, **{name: value for name, value in parameters.items() if not name.startswith("If")})

    return request
