"""Consistent reads: one state of an object, pinned by its ETag and verified by its checksum, with one retry."""

from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from s3fs.core import version_id_kw
from s3fs.utils import FileExpired

from fsspec_csx.errors import ChecksumError, ObjectNotFoundError, TooLargeError
from fsspec_csx.s3 import object_attributes
from fsspec_csx.s3.client.error_mapping import code_of
from fsspec_csx.s3.part_copies import CopySource
from fsspec_csx.s3.transport.byte_range import RangeRequest
from fsspec_csx.s3.transport.checksum import Algorithm, of_object
from fsspec_csx.s3.transport.range_planning import checksums, coalesce

T = TypeVar("T")


class PinnedObject:
    """One state of an object, identified by its ETag.

    Args:
        version_id: the version to read; by default the one in the path, if any.
        etag: of the state; if None or empty, the first response sets it.
    """

    def __init__(self, fs: Any, path: str, version_id: str | None, etag: str | None = None) -> None:
        self.bucket, self.key, version = fs.split_path(path)
        self.version = version_id or version
        self.etag = etag
        self._fs = fs

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    async def get(self, **span: str) -> Any:
        """Request a range of the object, or all of it; FileExpired, an OSError, if the object was replaced."""
        pinned = {"IfMatch": self.etag} if self.etag else {}
        named = {"Bucket": self.bucket, "Key": self.key, **version_id_kw(self.version)}
        try:
            answer = await self._fs._call_s3("get_object", **named, **pinned, **span)
        except OSError as error:
            if code_of(error) in ("PreconditionFailed", "412"):
                raise FileExpired(str(self), self.etag) from error
            raise
        self.etag = self.etag or answer.get("ETag")
        if answer.get("ETag") != self.etag:
            raise FileExpired(str(self), self.etag)
        return answer

    async def fill(self, memory: memoryview, start: int, part: int) -> None:
        """Fill memory with the bytes from a position on, by requests of at most ``part`` bytes each."""
        await self._fs.transfer.fetch(self.get, coalesce([(start, memory)], part))


@dataclass(frozen=True)
class ObjectMetadata(CopySource):
    """The metadata of one state of an object.

    Attributes:
        algorithm: of the checksum; None if the server has no checksum of the whole object.
        checksum: as S3 writes it.
        headers: the attributes that a copy of the object gets, as botocore names them.
        kept: the attributes that the object keeps when it is replaced.
    """

    algorithm: Algorithm | None
    checksum: str
    headers: Mapping[str, Any]
    kept: Mapping[str, Any]


async def head_object(fs: Any, path: str, version_id: str | None = None, **options: Any) -> dict[str, Any]:
    bucket, key, version = fs.split_path(path)
    if not key:
        raise ObjectNotFoundError(f"{path!r} names no object.", "Give a bucket and a name, as in s3://bucket/name.")
    named = {"Bucket": bucket, "Key": key, **version_id_kw(version_id or version)}
    # S3 ignores other options of the filesystem, but needs the encryption keys among them.
    head: dict[str, Any] = await fs._call_s3("head_object", fs.kwargs, **named, **options)
    return head


async def object_metadata(fs: Any, path: str, version_id: str | None = None) -> ObjectMetadata:
    bucket, key, version = fs.split_path(path)
    await fs.set_session()
    head = await head_object(fs, path, version_id, ChecksumMode="ENABLED")
    algorithm, checksum = of_object(head["ResponseMetadata"].get("HTTPHeaders", {})) or (None, "")
    headers, kept = object_attributes.of_copy(head), object_attributes.of_new_state(head)
    state = (bucket, key, version_id or version, head.get("ETag") or "", head["ContentLength"])
    return ObjectMetadata(*state, algorithm, checksum, headers, kept)


def _allocate(size: int, name: object) -> bytes:
    """Return memory that the system allocates as it is filled; TooLargeError, a MemoryError, if there is not enough."""
    try:
        return bytes(size)
    except (MemoryError, OverflowError):
        reason = f"There is not enough memory for {name}, which has {size:,} bytes by the server's response."
        remedy = "Read it in parts, or into a file; if it is smaller, the server or a proxy reports a wrong size."
        raise TooLargeError(reason, remedy) from None


class _UnclosedBytesIO(io.BytesIO):
    """The memory of a BytesBuffer.

    The garbage collector closes files before it frees views of their memory, and from Python 3.13 reports that as an
    error.
    """

    def close(self) -> None:
        """Do nothing."""


class BytesBuffer:
    """Writable memory that becomes a bytes object without a copy."""

    def __init__(self, size: int, name: object) -> None:
        self._size = size
        self._file = _UnclosedBytesIO(_allocate(size, name))
        self.memory = self._file.getbuffer()

    def __enter__(self) -> BytesBuffer:
        return self

    def __exit__(self, *args: object) -> None:
        self.memory.release()

    def getvalue(self, size: int | None = None) -> bytes:
        """Return the content, or its first ``size`` bytes; the memory cannot be used afterwards."""
        self.memory.release()
        if size is not None and size < self._size:
            try:
                self._file.truncate(size)
            except BufferError:  # the traceback of an earlier attempt still references the memory
                return self._file.getvalue()[:size]
        return self._file.getvalue()


def checksum_function(probe: RangeRequest) -> Callable[[memoryview, int], int] | None:
    """Return the function that computes the object's checksum, if the response to its first range names one."""
    known = of_object(probe.headers)
    return known[0].compute if known else None


def verify_checksum(
    found: PinnedObject, probe: RangeRequest, first: memoryview, ranges: Sequence[RangeRequest]
) -> None:
    """Verify the bytes of an object by its checksum, if the server sent one in the headers of ``probe``.

    Args:
        first: the bytes of that range.
        ranges: the other ranges, in order, with their checksums by ``checksum_function``.

    Raises:
        ChecksumError: if the checksums differ.
    """
    known = of_object(probe.headers)
    if known is None:
        return
    algorithm, expected = known
    actual = algorithm.compute(first, 0)
    if ranges:
        length = sum(each.length for each in ranges)
        actual = algorithm.combine(actual, checksums(ranges, 1, algorithm.combine)[0], length)
    compare_checksum(found, algorithm, actual, expected)


def compare_checksum(name: object, algorithm: Algorithm, checksum: int, expected: str) -> None:
    """Raise ChecksumError if the checksum of the bytes read differs from the server's."""
    if algorithm.encoded(checksum) != expected:
        reason = f"{name} was read with the checksum {algorithm.encoded(checksum)}; the server has {expected}."
        raise ChecksumError(reason, "Read it again; if that does not help, the network or the server damages data.")


async def retry_if_changed(read: Callable[[], Awaitable[T]]) -> T:
    """Call ``read``, and once more if the object was replaced, or its bytes were damaged on the way."""
    try:
        return await read()
    except (FileExpired, ChecksumError):
        return await read()
