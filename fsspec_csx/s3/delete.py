"""Deleting objects, versions, folders and buckets; only exactly what was named is deleted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from s3fs.core import version_id_kw

from fsspec_csx.s3.client.error_mapping import code_of, object_changed_error
from fsspec_csx.s3.consistent_read import head_object
from fsspec_csx.s3.listing import check_depth, list_keys
from fsspec_csx.s3.names import expand, folder_error, may_match, not_found_error, path_of
from fsspec_csx.s3.transport.compat import run_in_chunks

# The most objects that one request can delete.
_AT_ONCE = 1000
# Characters that XML does not allow, and so not the list of a request for many objects.
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
# Errors of stores that do not support versions.
_NO_VERSIONS = {"405", "MethodNotAllowed", "NotImplemented"}


async def rm(fs: Any, path: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> list[str]:
    """Delete objects; nothing is deleted unless each path names something that can be deleted.

    Args:
        path: a name, a pattern, or a list of them. A path with a version stands for that version alone.
        recursive: whether to delete what is below folders too, and a bucket with its contents.
        maxdepth: the most levels of folders to delete.

    Raises:
        ObjectNotFoundError: if a name does not exist, or no pattern matches anything.
        IsADirectoryError: if it is a folder or a bucket, unless ``recursive``.
        DeleteError: if the server fails to delete some objects.
    """
    check_depth(maxdepth)
    paths = [path] if isinstance(path, str) else list(path)
    found = await run_in_chunks([_deletable(fs, each, recursive, maxdepth) for each in paths], nofiles=True)
    names = sorted({name for each in found for name in each})
    buckets = {fs.split_path(each)[0] for each in paths if not fs.split_path(each)[1]}
    if not names and not buckets:
        raise not_found_error(path)
    emptied = buckets if maxdepth is None else set()
    for bucket in emptied:
        if await _is_versioned(fs, bucket):
            await fs._rm_versioned_bucket_contents(bucket)
    deleted = await delete_objects(fs, names)
    for bucket in emptied:
        await fs._rmdir(bucket)
    return deleted


async def _is_versioned(fs: Any, bucket: str) -> bool:
    try:
        return bool(await fs._is_bucket_versioned(bucket))
    except OSError as error:
        if code_of(error) not in _NO_VERSIONS:
            raise
        return False


async def _deletable(fs: Any, path: str, recursive: bool, maxdepth: int | None) -> list[str]:
    """Return the names of the objects to delete for a path; none if it is a pattern that nothing matches."""
    if not recursive and not may_match(fs, path):
        info = await fs._info(path)
        if info["type"] == "directory":
            raise folder_error(path, "delete")
        return [path if fs.split_path(path)[2] else info["name"]]
    found = await expand(fs, path, recursive, maxdepth, markers=True, ask=False)
    if found.entries and not found.files and not recursive:
        raise folder_error(path, "delete")
    return [path_of(each) for each in found.files]


async def delete_objects(fs: Any, names: Collection[str], etags: Mapping[str, str] | None = None) -> list[str]:
    """Delete objects and versions, many by each request; for ``etags`` see ``delete_unchanged``."""
    etags = etags or {}
    alone = {each for each in names if len(names) == 1 or _NOT_IN_XML.search(each)}
    calls = [fs._rm_file(each, etag=etags.get(each, "")) for each in alone]
    await run_in_chunks(calls, batch_size=fs.batch_size, nofiles=True)
    of_bucket: dict[str, list[str]] = {}
    for name in sorted({*names} - alone):
        of_bucket.setdefault(fs.split_path(name)[0], []).append(name)
    calls = [
        fs._bulk_delete(each[start : start + _AT_ONCE], etags=etags)
        for each in of_bucket.values()
        for start in range(0, len(each), _AT_ONCE)
    ]
    deleted = await run_in_chunks(calls, batch_size=3, nofiles=True)
    return [name for each in deleted for name in each]


async def delete_unchanged(fs: Any, etags: Mapping[str, str]) -> None:
    """Delete objects unless another program has replaced them; ``etags`` are their ETags, or empty.

    Servers that ignore the condition, as some do, delete what replaced an object a moment before.

    Raises:
        ObjectChangedError: an OSError, if an object has another ETag.
    """
    try:
        await delete_objects(fs, etags, etags)
    except OSError:  # one has changed, or was deleted before, or the server refuses the condition
        calls = [_delete_if_same(fs, *each) for each in etags.items()]
        await run_in_chunks(calls, batch_size=fs.batch_size, nofiles=True)


async def _delete_if_same(fs: Any, path: str, etag: str) -> None:
    try:
        found = await head_object(fs, path)
    except FileNotFoundError:
        return
    if etag and found.get("ETag") != etag:
        raise object_changed_error(f"s3://{path}")
    await fs._rm_file(path)


async def bulk_delete(
    fs: Any, pathlist: Iterable[str], etags: Mapping[str, str] | None = None, **kwargs: Any
) -> list[str]:
    """Delete at most 1000 objects or versions of one bucket by one request; for ``etags`` see ``delete_unchanged``.

    Raises:
        DeleteError: if the server fails to delete some of them.
        ValueError: if there are more, or in several buckets.
    """
    pathlist = list(pathlist)
    named = [fs.split_path(each) for each in pathlist]
    if not named:
        return []
    bucket = named[0][0]
    if len(named) > _AT_ONCE or any(each[0] != bucket for each in named):
        msg = f"One request deletes at most {_AT_ONCE} objects of one bucket. Make several."
        raise ValueError(msg)
    objects = [{"Key": key, **version_id_kw(version)} for _, key, version in named]
    for path, each in zip(pathlist, objects, strict=True):
        if etags and etags.get(path) and "VersionId" not in each:
            each["ETag"] = etags[path]
    try:
        answer = await fs._call_s3("delete_objects", kwargs, Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
    finally:  # only now, as another thread may list them meanwhile
        for _, key, _ in named:
            fs.invalidate_cache(f"{bucket}/{key}")
    return [f"{bucket}/{each['Key']}" for each in answer.get("Deleted", [])]


async def rm_file(fs: Any, path: str, etag: str = "", **kwargs: Any) -> None:
    """Delete an object, or the version in the path, by one request; it is no error if it is missing.

    An object with another ETag than ``etag`` is not deleted, if the server supports this condition.
    """
    bucket, key, version = fs.split_path(path)
    if not key:
        raise folder_error(path, "delete")
    named = version_id_kw(version) or ({"IfMatch": etag} if etag else {})
    try:
        await fs._call_s3("delete_object", Bucket=bucket, Key=key, **named)
    finally:
        fs.invalidate_cache(f"{bucket}/{key}")


async def rmdir(fs: Any, path: str) -> None:
    """Delete an empty bucket, or the marker of a folder that contains nothing else.

    Raises:
        FileNotFoundError: if the bucket or folder does not exist.
        OSError: if it is not empty; for a folder or an object, a FileExistsError.
    """
    bucket, key, _ = fs.split_path(path)
    if not key:
        await fs._call_s3("delete_bucket", Bucket=bucket)
        fs.invalidate_cache(bucket)
        fs.invalidate_cache("")
        return
    key = key.rstrip("/")
    found = await list_keys(fs, bucket, f"{key}/", "/", max_items=2)
    if [(each["name"], each["size"]) for each in found] == [(f"{bucket}/{key}/", 0)]:
        await fs._rm_file(f"{bucket}/{key}/")
    elif found or await fs._isfile(f"{bucket}/{key}"):
        msg = f"s3://{bucket}/{key} is not an empty folder. Use rm with recursive=True to delete everything below it."
        raise FileExistsError(msg)
    else:
        raise not_found_error(f"{bucket}/{key}")
