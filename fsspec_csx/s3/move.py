"""Moving objects: copy them on the server, compare each copy with its source, then delete the sources."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from s3fs.utils import FileExpired

from fsspec_csx.errors import ChecksumError
from fsspec_csx.s3.consistent_read import head_object
from fsspec_csx.s3.delete import delete_unchanged
from fsspec_csx.s3.directory_buckets import is_directory_bucket
from fsspec_csx.s3.names import PathPair, check_distinct, folder_error
from fsspec_csx.s3.transport.call_scope import contained
from fsspec_csx.s3.transport.checksum import of_object
from fsspec_csx.s3.transport.compat import run_in_chunks
from fsspec_csx.s3.trees import becomes_bucket, copy_pairs

# Matches an ETag that may be the MD5 of the content.
_MD5 = re.compile(r'"?[0-9a-f]{32}"?')


@contained
async def mv(
    fs: Any, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
) -> None:
    """Move objects; if one cannot be moved, no source is deleted. An object whose name does not change stays.

    Raises:
        ChecksumError: if a copy differs from its source.
        FileExpired, ObjectChangedError: OSErrors, if a source was replaced meanwhile.
        FileNotFoundError: if nothing has the name or matches the pattern.
        IsADirectoryError: if a source is a folder, unless ``recursive``.
        ValueError: before anything is copied, if a target names a version, or two sources have one target.
    """
    pairs = await copy_pairs(fs, path1, path2, recursive, maxdepth)
    if not pairs:
        raise folder_error(path1, "move")
    check_distinct(pairs)
    files = [each for each in pairs if each.type != "directory"]
    moved = [each for each in files if fs.split_path(each.source) != fs.split_path(each.target)]
    calls = [_copy_and_compare(fs, each, **kwargs) for each in moved if not becomes_bucket(fs, each)]
    copied = await run_in_chunks(calls, batch_size=fs.batch_size, nofiles=True)
    await delete_unchanged(fs, {**dict.fromkeys((each.source for each in moved), ""), **dict(copied)})


async def mv_file(fs: Any, path1: str, path2: str, **kwargs: Any) -> None:
    await mv(fs, [path1], [path2], **kwargs)


async def _copy_and_compare(fs: Any, pair: PathPair, **kwargs: Any) -> tuple[str, str]:
    """Copy an object, and return the name and the ETag of the source."""
    try:
        before = await _head(fs, pair.source)
    except FileNotFoundError:
        if await fs._isdir(pair.source):
            raise folder_error(pair.source, "move") from None
        raise
    await fs._cp_file(pair.source, pair.target, **kwargs)
    copied, after = await asyncio.gather(_head(fs, pair.target), _head(fs, pair.source))
    if (after["ETag"], after["ContentLength"]) != (before["ETag"], before["ContentLength"]):
        raise FileExpired(pair.source, before["ETag"])
    of_content = not any(is_directory_bucket(fs.split_path(path)[0]) for path in (pair.source, pair.target))
    if copied["ContentLength"] != before["ContentLength"] or not _may_be_equal(before, copied, of_content):
        reason = f"The copy of {pair.source!r} at {pair.target!r} differs from its source; no source was deleted."
        raise ChecksumError(reason, "Move it again; if that does not help, the server damages data.")
    return pair.source, str(before["ETag"])


async def _head(fs: Any, path: str) -> Mapping[str, Any]:
    return {"ETag": "", **await head_object(fs, path, ChecksumMode="ENABLED")}


def _may_be_equal(source: Mapping[str, Any], copy: Mapping[str, Any], of_content: bool) -> bool:
    """Compare the checksums of two objects, or their ETags where these depend on the content only."""
    known, copied = (of_object(each["ResponseMetadata"].get("HTTPHeaders", {})) for each in (source, copy))
    if known and copied and known[0] is copied[0]:
        return known[1] == copied[1]
    if of_content and _is_md5(source) and _is_md5(copy):
        return bool(source["ETag"] == copy["ETag"])
    return True


def _is_md5(head: Mapping[str, Any]) -> bool:
    encrypted = "SSECustomerAlgorithm" in head or str(head.get("ServerSideEncryption", "")).startswith("aws:kms")
    return not encrypted and bool(_MD5.fullmatch(head["ETag"]))
