"""Uploads: memory and local files are written to objects by parallel requests."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from fsspec_csx.errors import ChecksumError, ObjectExistsError
from fsspec_csx.s3 import transactions
from fsspec_csx.s3.consistent_read import head_object
from fsspec_csx.s3.multipart import MultipartUpload, UploadedPart
from fsspec_csx.s3.object_attributes import source_key
from fsspec_csx.s3.part_copies import CopiedSpan
from fsspec_csx.s3.part_sizes import part_size_for
from fsspec_csx.s3.put_object import Call, put
from fsspec_csx.s3.transport.request_body import (
    FileSliceBody,
    LocalFile,
    MemoryBody,
    RequestBody,
    file_changed_error,
    single_bytes,
)
from fsspec_csx.s3.transport.threads import to_thread
from fsspec_csx.s3.upload_journal import SourceFingerprint, open_journal
from fsspec_csx.s3.versions import check_writable

Payload: TypeAlias = Callable[[int, int], Awaitable[RequestBody | CopiedSpan]]
# The most bytes in memory of parts that are fetched, unless one part is larger.
_IN_MEMORY = 128 * 2**20


async def pipe_file(
    fs: Any, path: str, data: Any, chunksize: int | None = None, mode: str = "overwrite", **kwargs: Any
) -> Any:
    """Write bytes to an object.

    Args:
        data: any contiguous memory; a str is encoded as UTF-8.
        chunksize: bytes per part, within the limits of S3; by default, chosen by the size.
        mode: "create" to refuse to replace an object.

    Raises:
        ObjectExistsError: in mode "create", if the object exists.
        ValueError: before anything is sent, if the data is larger than any object can be.
    """
    data = data.encode() if isinstance(data, str) else data
    if fs._intrans:
        return await transactions.write(fs, path, [data], chunksize, mode, kwargs)
    memory = single_bytes(data)

    async def payload(start: int, end: int) -> RequestBody:
        return MemoryBody([memory[start:end]])

    return await send_object(fs, path, len(memory), payload, chunksize, mode, kwargs)


async def touch(fs: Any, path: str, truncate: bool = True, data: Any = None, **kwargs: Any) -> Any:
    """Create an empty object; as ``s3fs.S3FileSystem.touch``.

    Raises:
        ValueError: if the object exists, unless ``truncate``; and if the path names a version.
    """
    bucket, key = check_writable(fs, path)
    if truncate:
        return await fs._pipe_file(path, b"", **kwargs)
    try:
        # Check first, as some servers ignore the condition of a write.
        with contextlib.suppress(FileNotFoundError):
            await head_object(fs, path)
            raise ObjectExistsError(f"s3://{bucket}/{key} exists already.")
        return await fs._pipe_file(path, b"", mode="create", **kwargs)
    except ObjectExistsError as error:
        msg = f"s3://{bucket}/{key} exists, and S3 cannot change its time alone. Pass truncate=True to empty it."
        raise ValueError(msg) from error


async def put_file(
    fs: Any,
    lpath: str,
    rpath: str,
    callback: Callback = DEFAULT_CALLBACK,
    chunksize: int | None = None,
    mode: str = "overwrite",
    resumable: bool = False,
    ready: Callable[[], object] = lambda: None,
    **kwargs: Any,
) -> None:
    """Upload a local file to an object; as ``_pipe_file``. A folder only creates a bucket: S3 has no folders.

    Args:
        resumable: whether to keep an interrupted upload, so that the next call resumes it.
        ready: called, if ``resumable``, before the request that publishes the object; may raise to prevent that.

    Raises:
        OSError: if the file changes meanwhile; unless ``resumable``, only if the change makes the upload fail.
    """
    _, key = check_writable(fs, rpath)
    if os.path.isdir(lpath):
        if not key:
            await fs._mkdir(rpath)
        return
    if guessed := mimetypes.guess_type(lpath)[0]:
        kwargs.setdefault("ContentType", guessed)
    if fs._intrans:
        pieces = transactions.pieces_of(lpath, callback, ready)
        await transactions.write(fs, rpath, pieces, chunksize, mode, kwargs)
        return
    with open(lpath, "rb") as file:
        descriptor = file.fileno()
        local = LocalFile(descriptor, lpath)
        size = os.fstat(descriptor).st_size
        # Pipes and files of the kernel report no size before they are read.
        memory = memoryview(b"" if size else await to_thread(file.read))
        size = size or len(memory)
        callback.set_size(size)

        async def payload(start: int, end: int) -> RequestBody:
            return MemoryBody([memory[start:end]]) if memory else FileSliceBody(local, start, end - start)

        def check_unchanged() -> None:
            if not memory and _state(lpath) != before:
                raise file_changed_error(lpath)

        def check_and_report(_: int | None) -> None:
            check_unchanged()
            ready()

        before = _state(descriptor)
        origin = SourceFingerprint(os.path.realpath(lpath), before) if resumable and not memory else None
        checks: dict[str, Any] = {"origin": origin, "ready": check_and_report} if origin else {}
        try:
            await send_object(fs, rpath, size, payload, chunksize, mode, kwargs, callback.relative_update, **checks)
        except ChecksumError:
            check_unchanged()  # a change of the file explains the error better than damage in the network
            raise


async def send_object(
    fs: Any,
    path: str,
    size: int,
    payload: Payload,
    part: int | None,
    mode: str,
    options: dict[str, Any],
    advance: Callable[[int], object] = lambda count: None,
    *,
    elsewhere: bool = False,
    origin: SourceFingerprint | None = None,
    ready: Callable[[int | None], object] | None = None,
) -> Any:
    """Create an object from payloads.

    Args:
        payload: returns the bytes between two positions, or the span of another object that the server copies as a
            part; a single payload must be bytes.
        elsewhere: whether payloads are fetched into memory: few are at a time, and parts that the server has are not
            fetched again for comparison.
        origin: identifies the source; if given, an interrupted upload is kept, to be resumed.
        ready: called when all has been read, with the object's CRC64NVME or None; may raise to prevent publication.
    """
    options.pop("max_concurrency", None)
    bucket, key = check_writable(fs, path)
    await fs.set_session()
    call = object_call(fs, bucket, key, options)
    checked = not any(name.startswith("Checksum") for name in {**fs.s3_additional_kwargs, **options})
    match = {"IfNoneMatch": "*"} if mode == "create" else {}
    chosen = part_size_for(size, part)
    if size <= chosen:

        async def call_when_ready(method: str, **parameters: Any) -> Any:
            if ready is not None:
                ready(None)  # the data was read for its checksum, which the server verifies
            return await call(method, **parameters)

        whole = await payload(0, size)
        assert isinstance(whole, RequestBody)
        answer = await put(call_when_ready, fs.transfer, whole, checked=checked, **match)
        advance(size)
    else:
        async with (
            open_journal(origin, f"{fs._endpoint} {path}") as record,
            MultipartUpload(call, fs.transfer, checked=checked, record=record) as upload,
        ):
            chosen = await upload.resume_or_create(chosen)
            await _send_parts(fs, upload, size, chosen, payload, advance, elsewhere)
            if ready is not None:
                ready(upload.crc64nvme)
            answer = await upload.complete(**match)
    fs.invalidate_cache(path)
    return answer


async def _send_parts(
    fs: Any,
    upload: MultipartUpload,
    size: int,
    part: int,
    payload: Payload,
    advance: Callable[[int], object],
    elsewhere: bool,
) -> None:
    """Send an object of ``size`` bytes in parts of ``part`` bytes, except those that the server has."""
    most = max(1, _IN_MEMORY // part) if elsewhere else fs.max_concurrency
    slots = asyncio.Semaphore(min(most, fs.max_concurrency))

    async def send(number: int, start: int) -> None:
        end = min(start + part, size)
        async with slots:
            kept = upload.kept.get(number)
            known = kept is not None and kept.length == end - start
            if known and (elsewhere or await _same(kept, await payload(start, end))):
                upload.keep(number)
            elif isinstance(body := await payload(start, end), CopiedSpan):
                await upload.copy(number, length=body.length, **body.parameters, **source_key(fs.s3_additional_kwargs))
            else:
                await upload.send(number, body)
        advance(end - start)

    await upload.send_parts(send(number, start) for number, start in enumerate(range(0, size, part), 1))


def object_call(fs: Any, bucket: str, key: str, options: dict[str, Any]) -> Call:
    async def call(method: str, **parameters: Any) -> Any:
        return await fs._call_s3(method, options, Bucket=bucket, Key=key, **parameters)

    return call


async def _same(kept: UploadedPart | None, payload: RequestBody | CopiedSpan) -> bool:
    """Return whether an uploaded part has these bytes."""
    if isinstance(payload, CopiedSpan):
        return False
    try:
        await to_thread(payload.prepare)
    finally:
        payload.given_up = True
    return kept is not None and kept.crc64nvme == payload.crc64nvme


def _state(file: str | int) -> str:
    """Return a text that differs whenever a local file has changed; empty if the file is gone."""
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return ""
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
