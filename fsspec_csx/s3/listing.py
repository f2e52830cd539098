"""Listing: whether an object or a folder exists, what it is, and what is below it.

Lookups of one path always ask the server; only listings of folders may come from the cache. An object whose key is also
a prefix is both a file and a folder. An empty object whose key ends with a slash marks a folder, and is not a file.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from fsspec_csx.errors import ObjectNotFoundError
from fsspec_csx.s3.client.response_validation import Listing
from fsspec_csx.s3.connection import raise_explained
from fsspec_csx.s3.consistent_read import head_object
from fsspec_csx.s3.directory_buckets import is_directory_bucket
from fsspec_csx.s3.transport.checksum import of_object
from fsspec_csx.s3.transport.failures import NotStartedError
from fsspec_csx.s3.transport.request_context import RequestOutcome, using
from fsspec_csx.s3.versions import chosen_version

_name = operator.itemgetter("name")
ListingEntry = dict[str, Any]
"""An object or a folder, as ``info`` returns it: ``name``, ``size`` in bytes, ``type`` and more."""


async def info(
    fs: Any,
    path: str,
    bucket: str | None = None,
    key: str | None = None,
    refresh: bool = False,
    version_id: str | None = None,
    checksum: bool = False,
) -> ListingEntry:
    """Return the entry of an object or else a folder; as ``s3fs.S3FileSystem.info``, but never from the cache.

    Args:
        checksum: see ``object_info``.

    Raises:
        ObjectNotFoundError: if neither exists.
        ValueError: if ``version_id`` is not the version of the path, or the filesystem is not version-aware.
    """
    version = chosen_version(fs, path, version_id)
    bucket, key, _ = fs.split_path(path)
    if not bucket:
        return {"name": fs._strip_protocol(path), "size": 0, "type": "directory"}
    if not key:
        head = await fs._call_s3("head_bucket", Bucket=bucket)
        return {**_folder(bucket), "VersionId": head.get("VersionId")}
    try:
        found = await lookup(fs, path, version, checksum=checksum)
    except FileNotFoundError:
        if version:
            raise
    else:
        return _folder(found["name"].rstrip("/")) if _is_marker(found) else found
    if await _is_prefix(fs, bucket, key.rstrip("/") + "/"):
        return _folder(f"{bucket}/{key.rstrip('/')}")
    if key.endswith("/"):
        return await lookup(fs, path.rstrip("/"))
    reason = f"There is no object s3://{fs._strip_protocol(path)} at {fs._endpoint}, and none below it."
    raise ObjectNotFoundError(reason, "Check its name.")


async def object_info(fs: Any, path: str, version_id: str | None = None, *, checksum: bool = False) -> ListingEntry:
    """Return the entry of an object, by one request; a folder raises ObjectNotFoundError.

    Args:
        checksum: whether to add the entry ``checksum``, the algorithm and value that ``checksum.of_object`` returns.
    """
    bucket, key, _ = fs.split_path(path)
    head = await head_object(fs, path, version_id, **({"ChecksumMode": "ENABLED"} if checksum else {}))
    known = {"checksum": of_object(head["ResponseMetadata"].get("HTTPHeaders", {}))} if checksum else {}
    return {
        **known,
        "ETag": head.get("ETag", ""),
        "LastModified": head.get("LastModified", ""),
        "size": head["ContentLength"],
        "name": f"{bucket}/{key}",
        "type": "file",
        "StorageClass": head.get("StorageClass", "STANDARD"),
        "VersionId": head.get("VersionId"),
        "ContentType": head.get("ContentType"),
    }


async def lookup(fs: Any, path: str, version_id: str | None = None, *, checksum: bool = False) -> ListingEntry:
    """Return ``object_info`` without a second request for details of the error if the object is missing."""
    with using(looking_up=True):
        return await object_info(fs, path, version_id, checksum=checksum)


async def isfile(fs: Any, path: str) -> bool:
    try:
        return not _is_marker(await lookup(fs, path))
    except FileNotFoundError:
        return False


async def isdir(fs: Any, path: str) -> bool:
    bucket, key, version = fs.split_path(path)
    if version:
        return False
    if not key:
        return not bucket or await fs._exists(bucket)
    try:
        return await _is_prefix(fs, bucket, key.rstrip("/") + "/")
    except FileNotFoundError:
        return False


async def _is_prefix(fs: Any, bucket: str, prefix: str) -> bool:
    options = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/", "MaxKeys": 1}
    page = await fs._call_s3("list_objects_v2", fs.kwargs, **options)
    return bool(page.get("KeyCount") or page.get("Contents") or page.get("CommonPrefixes"))


async def ls(fs: Any, path: str, detail: bool = False, refresh: bool = False, versions: bool = False) -> Any:
    """List the files and folders in a folder, or an object; as ``s3fs.S3FileSystem.ls``.

    Args:
        detail: whether to return entries rather than names.
        refresh: whether to bypass the cache.
        versions: whether to list each version of an object.

    Raises:
        ObjectNotFoundError: if neither exists.
    """
    bucket, key, version = fs.split_path(path)
    folder = f"{key.rstrip('/')}/" if key else ""
    if not bucket:
        found = await fs._lsbuckets(refresh)
    elif version:
        found = []
    else:
        found = await _list_folder(fs, bucket, folder, "", refresh, versions)
    found = [each for each in found if not _is_marker(each)]
    if not found and key:
        found = await _list_itself(fs, path, versions and not version)
    return found if detail else sorted({each["name"] for each in found})


async def _list_itself(fs: Any, path: str, versions: bool) -> list[ListingEntry]:
    """Return the listing of an object, or of a folder that contains only its marker."""
    info = await fs._info(path)
    if info["type"] == "directory":
        return []
    if versions:
        bucket, key, _ = fs.split_path(path)
        listed = await list_keys(fs, bucket, key, "", versions=True)
        return [each for each in listed if each["Key"] == info["name"]]
    return [{**with_version(fs, path, info), "Key": info["name"], "Size": info["size"]}]


def with_version(fs: Any, path: str, entry: ListingEntry) -> ListingEntry:
    """Return the entry of an object, with the version of the path, if any, in its name."""
    version = fs.split_path(path)[2]
    return {**entry, "name": f"{entry['name']}?versionId={version}"} if version else entry


async def _list_folder(
    fs: Any, bucket: str, folder: str, prefix: str, refresh: bool, versions: bool
) -> list[ListingEntry]:
    """Return the entries in a folder whose names begin with a prefix, and the folder's marker, if it has one."""
    if versions:
        return await list_keys(fs, bucket, folder + prefix, "/", versions=True)
    path = f"{bucket}/{folder}"[:-1]
    if not refresh and (cached := fs.dircache.get(path)) is not None:
        start = f"{bucket}/{folder}{prefix}"
        return [each for each in cached if each["name"].startswith(start)]
    before = fs.last_change
    found = await list_keys(fs, bucket, folder + prefix, "/")
    if found and not prefix:
        fs.dircache[path] = found
        if fs.last_change is not before:  # checked last, as another thread may change the folder at any time
            fs.dircache.pop(path, None)
    return list(found)


async def list_keys(
    fs: Any, bucket: str, prefix: str, delimiter: str, max_items: int | None = None, versions: bool = False
) -> list[ListingEntry]:
    """Return every object and common prefix that the server lists, with markers, sorted by name."""
    options: dict[str, Any] = {"max_items": max_items, "delimiter": delimiter, "prefix": prefix}
    outcome = RequestOutcome()
    while True:
        try:
            with using(outcome=outcome, listing=Listing()):
                listed = fs._iterdir(bucket, versions=versions, **options)
                return sorted([each async for each in listed], key=_name)
        except NotStartedError as error:  # older releases of s3fs do not list by _call_s3, which waits too
            await asyncio.sleep(error.seconds)
        except Exception as error:
            raise_explained(await fs._explained(error, "list_objects_v2", {"Bucket": bucket}, outcome), error)


async def list_tree(
    fs: Any,
    path: str,
    maxdepth: int | None = None,
    prefix: str = "",
    *,
    refresh: bool = False,
    versions: bool = False,
    markers: bool = False,
) -> list[ListingEntry]:
    """Return the files and folders below a path, sorted by name; the folder itself comes first, if it exists.

    Args:
        prefix: only names in the first level that begin with it.
        markers: whether to list the markers of folders too, as files.

    Raises:
        ValueError: if the path names no bucket, or ``maxdepth`` is less than 1.
    """
    bucket, key, _ = fs.split_path(path)
    if not bucket:
        msg = "The path names no bucket, and all of S3 cannot be listed. Name a bucket."
        raise ValueError(msg)
    check_depth(maxdepth)
    folder = f"{key.rstrip('/')}/" if key else ""
    begin = f"{bucket}/{folder}{prefix}"
    if is_directory_bucket(bucket):
        prefix = ""
    root = f"{bucket}/{folder}"[:-1]
    if maxdepth is None:
        listed = await list_keys(fs, bucket, folder + prefix, "", versions=versions)
        below = [*listed, *_folders_of(listed, root)]
    else:
        listed = below = await _list_folders(fs, bucket, folder, prefix, maxdepth, refresh, versions)
    below = [each for each in below if each["name"].startswith(begin)]
    kept = sorted((each for each in below if markers or not _is_marker(each)), key=_name)
    return [_folder(root), *kept] if key and listed else kept


async def _list_folders(
    fs: Any, bucket: str, folder: str, prefix: str, maxdepth: int, refresh: bool, versions: bool
) -> list[ListingEntry]:
    found = await _list_folder(fs, bucket, folder, prefix, refresh, versions)
    if maxdepth == 1:
        return found
    folders = [each["name"][len(bucket) + 1 :] + "/" for each in found if each["type"] == "directory"]
    below = (_list_folders(fs, bucket, each, "", maxdepth - 1, refresh, versions) for each in folders)
    return [*found, *(each for level in await asyncio.gather(*below) for each in level)]


async def find(
    fs: Any,
    path: str,
    maxdepth: int | None = None,
    withdirs: bool | None = False,
    detail: bool = False,
    prefix: str = "",
    refresh: bool = False,
    versions: bool = False,
) -> Any:
    """Return the files below a path, or the object at it; as ``s3fs.S3FileSystem.find``. See also ``list_tree``.

    Args:
        withdirs: whether to include the folders.
        detail: whether to return entries rather than names.

    Raises:
        BucketNotFoundError: if the bucket does not exist; for other paths without objects, the result is empty.
        ValueError: if ``maxdepth`` is less than 1.
    """
    below = []
    if not fs.split_path(path)[2]:
        below = await list_tree(fs, path, maxdepth, prefix, refresh=refresh, versions=versions)
    files = [each for each in below if each["type"] != "directory"]
    if not files and not prefix:
        with suppress(FileNotFoundError):
            files = [with_version(fs, path, await lookup(fs, path.rstrip("/")))]
    return by_name([*below, *files] if withdirs else files, detail)


def by_name(entries: Iterable[ListingEntry], detail: bool) -> Any:
    """Return the names of entries, or with ``detail`` a dict of them; an object replaces a folder of the same name."""
    found = {each["name"]: each for each in sorted(entries, key=lambda each: bool(each["type"] != "directory"))}
    return dict(sorted(found.items())) if detail else sorted(found)


async def du(fs: Any, path: str, total: bool = True, maxdepth: int | None = None, **kwargs: Any) -> Any:
    # fsspec would request the size of each object separately.
    found = await fs._find(path, maxdepth=maxdepth, detail=True, **kwargs)
    sizes = {name: info["size"] for name, info in found.items()}
    return sum(sizes.values()) if total else sizes


def check_depth(maxdepth: int | None) -> None:
    """Raise ValueError if ``maxdepth`` is less than 1."""
    if maxdepth is not None and maxdepth < 1:
        msg = f"maxdepth is {maxdepth}, and must be at least 1. Leave it out for all levels."
        raise ValueError(msg)


def _folder(name: str) -> ListingEntry:
    return {"name": name, "type": "directory", "size": 0, "StorageClass": "DIRECTORY"}


def _is_marker(entry: ListingEntry) -> bool:
    return bool(entry["type"] != "directory" and entry["name"].endswith("/") and not entry["size"])


def _folders_of(entries: Iterable[ListingEntry], root: str) -> Iterator[ListingEntry]:
    """Yield the folders below a root that contain objects."""
    seen = {root}
    for each in entries:
        path = each["name"].rpartition("/")[0]
        while path not in seen and len(path) > len(root):
            seen.add(path)
            yield {**_folder(path), "Key": path, "Size": 0}
            path = path.rpartition("/")[0]
