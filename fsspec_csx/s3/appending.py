"""The state of an object when a file is opened to create it or to append to it, and the conditions of the write."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fsspec_csx.errors import ObjectExistsError
from fsspec_csx.s3.client.error_mapping import code_of, object_changed_error
from fsspec_csx.s3.object_attributes import locks, of_new_state, source_key, tagging, unless_named
from fsspec_csx.s3.part_copies import CopySource
from fsspec_csx.s3.put_object import Call
from fsspec_csx.s3.transport.range_planning import coalesce
from fsspec_csx.s3.transport.transfer import Transfer

# The most parts that the server copies from the object; the others are for the appended bytes.
_COPIED_PARTS = 2_000
_MIB = 2**20
# Error codes of stores that do not support conditional writes; of those with status 400, Backblaze B2.
_UNCONDITIONAL = {"InvalidArgument", "InvalidRequest", "MethodNotAllowed", "NotImplemented"}
# Errors of a read from an object that was replaced.
_CHANGED = {"412", "416", "InvalidRange", "PreconditionFailed"}


@dataclass(frozen=True)
class AppendTarget:
    """The object that a file appends to, in its state when the file was opened.

    Attributes:
        found: whether it exists.
        part: bytes of each part of the new object.
        copied: parameters of UploadPartCopy for the parts that the server copies.
        tail: the bytes after those parts, fewer than one part.
        kept: attributes that the new object takes over.
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
        """The conditions of the write: the object must not have changed since."""
        if not self.found:
            return {"IfNoneMatch": "*"}
        return {"IfMatch": self.etag} if self.etag else {}


async def check_absent(fs: Any, path: str) -> None:
    """Raise if the object of a new file exists, before any data is written; only the commit checks it reliably."""
    try:
        found = await fs._info(path, refresh=True)
    except FileNotFoundError:
        return
    if found["type"] == "file":
        raise ObjectExistsError(f"s3://{path} exists already.", "Choose another name, or overwrite it.")


async def find_append_target(
    call: Call, transfer: Transfer, bucket: str, key: str, part: int, options: Mapping[str, Any]
) -> AppendTarget:
    """Look up the object to append to, and read the bytes after its last full part.

    Args:
        part: the smallest part size, in bytes.
        options: the options of the call and the filesystem, which override attributes of the object.

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
    copied = [{**span.parameters, **source_key(options)} for span in spans]
    tail = memoryview(bytearray(size - start))
    if tail:
        await _read(call, transfer, source, start, tail)
    kept = unless_named({**of_new_state(head), **locks(head), **await tagging(call, str(source))}, options)
    return AppendTarget(True, etag, size, part, copied, tail, kept)


async def _read(call: Call, transfer: Transfer, source: CopySource, start: int, memory: memoryview) -> None:
    get = functools.partial(call, "get_object", **({"IfMatch": source.etag} if source.etag else {}))
    try:
        await transfer.fetch(get, coalesce([(start, memory)], transfer.request_size(len(memory))))
    except OSError as error:
        if isinstance(error, FileNotFoundError) or code_of(error) in _CHANGED:
            raise object_changed_error(str(source)) from error
        raise


def with_conditions(call: Call, etag: str, target: str) -> Call:
    """Wrap ``call``; if the store does not support conditional writes, compare the ETag before an unconditional one."""

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
            raise object_changed_error(target)
        return await call(method, **{name: value for name, value in parameters.items() if not name.startswith("If")})

    return request
