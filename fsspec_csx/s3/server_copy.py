"""Server-side copies: the server copies or joins objects, or changes their metadata, without a download.

A copy has the headers, metadata, tags and storage class of its source, except those that the call or the filesystem
sets. It is not archived, even if its source is.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from s3fs.core import version_id_kw
from s3fs.utils import FileExpired

from fsspec_csx.s3 import object_attributes
from fsspec_csx.s3.client.error_mapping import object_changed_error
from fsspec_csx.s3.consistent_read import ObjectMetadata, PinnedObject, object_metadata
from fsspec_csx.s3.multipart import MultipartUpload, gather_or_cancel
from fsspec_csx.s3.object_attributes import source_key, tagging, unless_named
from fsspec_csx.s3.part_copies import COPIED_PART, CopiedSpan, CopySource
from fsspec_csx.s3.part_sizes import PARTS, part_size_for
from fsspec_csx.s3.transport.request_body import MemoryBody, RequestBody
from fsspec_csx.s3.transport.transfer import PART
from fsspec_csx.s3.upload import object_call, send_object
from fsspec_csx.s3.upload_journal import SourceFingerprint, open_journal
from fsspec_csx.s3.versions import check_writable

logger = logging.getLogger("fsspec_csx")

# The largest object that is copied by one request, in bytes; larger ones are copied in parts.
_COPIED_WHOLE = 256 * 2**20


async def cp_file(
    fs: Any,
    path1: str,
    path2: str,
    preserve_etag: bool | None = None,
    callback: Callback = DEFAULT_CALLBACK,
    mode: str = "overwrite",
    resumable: bool = False,
    **kwargs: Any,
) -> None:
    """Copy an object on the server; a large one in parts.

    Args:
        preserve_etag: whether to copy the original parts of the source, so that the copy gets the same ETag. A warning
            is logged if the server gives another one nevertheless.
        mode: "create" to refuse to replace an object; only for large sources.
        resumable: whether to keep an interrupted copy in parts, so that the next call resumes it.
        kwargs: parameters of CopyObject and CreateMultipartUpload, such as ``ContentType``.

    Raises:
        ObjectChangedError: if the source changes while it is copied in parts, or with other headers.
        ObjectExistsError: in mode "create", if the object exists.
    """
    check_writable(fs, path2)
    metadata = await object_metadata(fs, path1)
    if preserve_etag and "-" in metadata.etag:
        spans = await _original_parts(fs, metadata)
        await _copy_spans(fs, metadata, spans, path2, kwargs, callback, mode, etag=metadata.etag)
    elif preserve_etag or metadata.size <= _COPIED_WHOLE:
        await _copy_whole(fs, metadata, path2, kwargs)
        callback.relative_update(metadata.size)
    else:
        origin = SourceFingerprint(f"{fs._endpoint} {path1}", f"{metadata.etag} {metadata.size}") if resumable else None
        spans = metadata.spans(_part(metadata.size))
        await _copy_spans(fs, metadata, spans, path2, kwargs, callback, mode, origin=origin)


async def _copy_whole(fs: Any, source: ObjectMetadata, path: str, options: dict[str, Any]) -> None:
    """Copy an object by one request; the server copies headers and tags, unless ``options`` set some."""
    kept = {name: source.headers[name] for name in ("StorageClass",) if name in source.headers}
    pinned: dict[str, str] = {}
    if "MetadataDirective" not in options and options.keys() & set(object_attributes.HEADERS):
        kept, pinned = {**source.headers, "MetadataDirective": "REPLACE"}, source.pinned
    if "Tagging" in options:
        kept["TaggingDirective"] = "REPLACE"
    await _copy_object(fs, source.named, path, kept, options, **pinned)


async def _copy_object(
    fs: Any, source: dict[str, str], path: str, kept: Mapping[str, Any], options: Mapping[str, Any], **pinned: str
) -> None:
    named = {**unless_named(kept, fs.s3_additional_kwargs, options), **options}
    keys = source_key({**fs.s3_additional_kwargs, **options})
    bucket, key, _ = fs.split_path(path)
    await fs._call_s3("copy_object", keys, named, Bucket=bucket, Key=key, CopySource=source, **pinned)
    fs.invalidate_cache(path)


async def _original_parts(fs: Any, source: CopySource) -> list[CopiedSpan]:
    """Return the parts that an object was uploaded in; its ETag ends with their number."""
    count = source.etag.strip('"').rpartition("-")[2]
    known = count.isdecimal() and int(count) <= PARTS
    lengths = [0] * (int(count) if known else 0)
    named = {"Bucket": source.bucket, "Key": source.key, **version_id_kw(source.version)}

    async def ask(number: int) -> None:
        async with fs.transfer.turn():
            head = await fs._call_s3("head_object", fs.kwargs, **named, PartNumber=number)
        lengths[number - 1] = head["ContentLength"]

    await gather_or_cancel(ask(number) for number in range(1, len(lengths) + 1))
    if sum(lengths) != source.size:
        return source.spans(_part(source.size))  # the server has no record of the parts
    ends = itertools.accumulate(lengths)
    return [CopiedSpan(source, end - length, end) for end, length in zip(ends, lengths, strict=True)]


async def _copy_spans(
    fs: Any,
    source: ObjectMetadata,
    spans: Sequence[CopiedSpan],
    path: str,
    options: Mapping[str, Any],
    callback: Callback = DEFAULT_CALLBACK,
    mode: str = "overwrite",
    *,
    origin: SourceFingerprint | None = None,
    etag: str = "",
) -> None:
    """Create an object from parts that the server copies from another object, or from the same.

    Args:
        spans: equal in size except the last, unless ``etag`` is given.
        origin: the source; if given, an interrupted upload is kept, to be resumed.
        etag: the ETag that the object should have.
    """
    bucket, key, _ = fs.split_path(path)
    named = await _attributes(fs, source, options, in_place=(source.bucket, source.key) == (bucket, key))
    call = object_call(fs, bucket, key, {**source_key({**fs.s3_additional_kwargs, **options}), **named})

    async def copy_part(number: int, span: CopiedSpan) -> None:
        kept = upload.kept.get(number)
        if kept is not None and kept.length == span.length:
            upload.keep(number)
        else:
            await upload.copy(number, length=span.length, **span.parameters)
        callback.relative_update(span.length)

    async with (
        open_journal(origin, f"{fs._endpoint} {path}") as record,
        MultipartUpload(call, fs.transfer, checked=False, record=record) as upload,
    ):
        if (part := await upload.resume_or_create(spans[0].length)) != spans[0].length:
            spans = source.spans(part)  # the part size of the upload that is resumed
        await gather_or_cancel(copy_part(number, span) for number, span in enumerate(spans, 1))
        if etag and upload.etag != etag.strip('"'):
            logger.warning("s3://%s gets another ETag than %s, as the server makes other ones.", path, source)
        await upload.complete(**({"IfNoneMatch": "*"} if mode == "create" else {}))
    fs.invalidate_cache(path)


async def _attributes(fs: Any, source: ObjectMetadata, options: Mapping[str, Any], *, in_place: bool) -> dict[str, Any]:
    """Return the options of the call, and the attributes of the object that they do not override."""
    kept = dict(source.kept if in_place else source.headers)
    if options.get("MetadataDirective") == "REPLACE":
        kept = {name: value for name, value in kept.items() if name not in object_attributes.HEADERS}
    if "Tagging" not in options and options.get("TaggingDirective") != "REPLACE":
        call = object_call(fs, source.bucket, source.key, {})
        kept |= await tagging(call, str(source), **version_id_kw(source.version))
    return {**unless_named(kept, fs.s3_additional_kwargs, options), **options}


async def setxattr(fs: Any, path: str, copy_kwargs: Mapping[str, Any] | None = None, **kw_args: Any) -> None:
    """Set metadata of an object; as ``s3fs.S3FileSystem.setxattr``. All else stays, except ACLs and locks.

    Args:
        copy_kwargs: parameters of CopyObject, such as ``{"ContentType": "text/csv"}``.
        kw_args: fields and their values, which are strings; None removes a field.

    Raises:
        ObjectChangedError: if the object changes meanwhile.
    """
    check_writable(fs, path)
    metadata = await object_metadata(fs, path)
    options = {"Metadata": _changed(metadata.headers.get("Metadata", {}), kw_args), **(copy_kwargs or {})}
    if metadata.size > _COPIED_WHOLE:
        await _copy_spans(fs, metadata, metadata.spans(_part(metadata.size)), path, options)
        return
    kept = {**metadata.kept, "MetadataDirective": "REPLACE"}
    await _copy_object(fs, metadata.named, path, kept, options, **metadata.pinned)


async def merge(fs: Any, path: str, filelist: Sequence[str], **kwargs: Any) -> None:
    """Concatenate objects into one; as ``s3fs.S3FileSystem.merge``.

    The server copies sources that fill parts of their own; other bytes are read and sent, so sources may have any size.

    Args:
        filelist: the paths of the objects; at least one.
        kwargs: parameters of PutObject and CreateMultipartUpload, such as ``ContentType``.

    Raises:
        ObjectChangedError: if a source changes meanwhile.
        ObjectNotFoundError: before anything is written, if a source does not exist.
    """
    check_writable(fs, path)
    if not filelist:
        msg = "There is nothing to merge. Name at least one object."
        raise ValueError(msg)
    await fs.set_session()
    found: dict[str, CopySource] = {}

    async def look(source: str) -> None:
        async with fs.transfer.turn():
            found[source] = await object_metadata(fs, source)

    await gather_or_cancel(look(source) for source in filelist)
    joined = _MergedSource(fs, [found[source] for source in filelist])
    part = joined.part
    await send_object(fs, path, joined.size, joined.body, part, "overwrite", dict(kwargs), elsewhere=True)


class _MergedSource:
    """Several objects as one; the server can copy the parts that lie within one of them."""

    def __init__(self, fs: Any, sources: Sequence[CopySource]) -> None:
        self._fs = fs
        self._sources = [source for source in sources if source.size]
        self._ends = list(itertools.accumulate(source.size for source in self._sources))
        self.size = self._ends[-1] if self._ends else 0
        # Copying needs sources larger than a copied part; smaller ones would all have to be read.
        largest = max((source.size for source in self._sources), default=0)
        self.part = part_size_for(self.size, COPIED_PART if largest > 2 * COPIED_PART else PART)

    async def body(self, start: int, end: int) -> RequestBody | CopiedSpan:
        """Return the bytes between two positions: as a span that the server can copy if they lie within one object."""
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
            raise object_changed_error(str(source)) from error


def _part(size: int) -> int:
    """Return the bytes of each part of a copy."""
    return max(min(COPIED_PART, _COPIED_WHOLE), part_size_for(size))


def _changed(metadata: Mapping[str, str], fields: Mapping[str, str | None]) -> dict[str, str]:
    """Return metadata with fields changed or removed; as in s3fs, which writes ``a_b`` as ``a-b``."""
    wanted = {name.replace("_", "-").lower(): value for name, value in fields.items()}
    kept = {name: value for name, value in metadata.items() if name.replace("_", "-").lower() not in wanted}
    return kept | {name: value for name, value in wanted.items() if value is not None}
