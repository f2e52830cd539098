"""Features of S3 alone: deletion of many objects in one request, and unfinished multipart uploads.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fsspec.asyn import sync

from fsspec_csx.errors import CredentialsError, EndpointError, ObjectNotFoundError
from fsspec_csx.manage.directory import File
from fsspec_csx.s3.directory_buckets import is_directory_bucket
from fsspec_csx.storage.threads import map_parallel

BATCH = 1000
"""The maximum of objects that one request deletes."""

PAGE = 1000
"""The maximum of objects or uploads that one request lists."""


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that was neither completed nor aborted."""

    bucket: str
    key: str  # the key of the object that it would create
    id: str  # the upload id
    size: int | None  # the size of its parts so far, in bytes; None without the right to list them
    modified: datetime  # the time of its last part, or of its start


def is_s3(fs: Any) -> bool:
    """Return whether a filesystem is S3, of this package or of plain s3fs."""
    return hasattr(fs, "call_s3")


def lists_in_order(fs: Any, path: str) -> bool:
    """Return whether a path is on S3, in a bucket that lists objects sorted by key."""
    return is_s3(fs) and not is_directory_bucket(fs.split_path(path)[0])


def first_page(fs: Any, path: str, name: str) -> tuple[list[File], bool]:
    """Return the first files directly in a folder, with a prefix added to their names, and whether there are more.

    It sends one request.
    """
    bucket, key, _ = fs.split_path(path)
    prefix = f"{key.rstrip('/')}/"
    answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=PAGE)
    listed = [each for each in answer.get("Contents", []) if each["Key"] != prefix]
    files = [File(name + each["Key"][len(prefix) :], each["Size"], each["LastModified"]) for each in listed]
    return files, bool(answer.get("IsTruncated"))


def is_listed(fs: Any, path: str) -> bool:
    """Return whether an object of exactly this path exists, by one sorted listing."""
    bucket, key, _ = fs.split_path(path)
    answer = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    return any(each["Key"] == key for each in answer.get("Contents", []))


def remove_batches(fs: Any, paths: Sequence[str]) -> dict[str, Exception | None]:
    """Delete objects by their exact names, with one request for each 1000 objects of a bucket.

    Returns the objects that may remain, each with the error if a deletion of it alone would fail too.
    """
    buckets: dict[str, list[str]] = {}
    for path in paths:
        fs.invalidate_cache(path)
        buckets.setdefault(fs.split_path(path)[0], []).append(path)
    left: dict[str, Exception | None] = {}
    for bucket, held in buckets.items():
        for start in range(0, len(held), BATCH):
            left |= _remove_batch(fs, bucket, held[start : start + BATCH])
    return left


def _remove_batch(fs: Any, bucket: str, paths: Sequence[str]) -> dict[str, Exception | None]:
    keys = [{"Key": fs.split_path(path)[1]} for path in paths]
    if len(paths) > 1:
        try:
            answer = fs.call_s3("delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            return dict.fromkeys(paths) if answer.get("Errors") else {}
        except (CredentialsError, EndpointError) as error:
            return dict.fromkeys(paths, error)
        except Exception:
            pass  # some servers lack this request, and its error does not say why one object fails
    return dict.fromkeys(paths)


def unfinished_uploads(fs: Any, path: str) -> list[UnfinishedUpload]:
    """Return the unfinished uploads to an object or bucket, and to the folder of that name, sorted by key."""
    bucket, key, _ = fs.split_path(path.rstrip("/"))
    # Directory buckets list only prefixes that end with a slash.
    prefix = key[: key.rfind("/") + 1] if is_directory_bucket(bucket) else key
    listed = [
        each
        for each in _listed(fs, bucket, prefix)
        if not key or each["Key"] == key or each["Key"].startswith(f"{key}/")
    ]
    found = map_parallel(fs, lambda each: _upload(fs, bucket, each), listed)
    return sorted((each for each in found if each), key=lambda each: (each.key, each.modified))


def _listed(fs: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    markers: dict[str, str] = {}
    while True:
        try:
            answer = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, MaxUploads=PAGE, **markers)
        except ObjectNotFoundError:  # some stores answer so if there are none
            return
        fresh = [each for each in answer.get("Uploads", []) if each["UploadId"] not in seen]
        yield from fresh
        if not answer.get("IsTruncated") or not fresh:
            return
        seen.update(each["UploadId"] for each in fresh)
        # A directory bucket returns only the key marker.
        given = {"KeyMarker": answer.get("NextKeyMarker"), "UploadIdMarker": answer.get("NextUploadIdMarker")}
        markers = {name: value for name, value in given.items() if value is not None}


def _upload(fs: Any, bucket: str, listed: dict[str, Any]) -> UnfinishedUpload | None:
    """Return an upload with the size and time of its parts; None if it has ended."""
    from fsspec_csx.s3.multipart import list_parts

    key, name, started = listed["Key"], listed["UploadId"], listed["Initiated"]
    try:
        parts = sync(fs.loop, list_parts, fs._call_s3, Bucket=bucket, Key=key, UploadId=name)
    except FileNotFoundError:
        return None
    except CredentialsError:
        raise
    except PermissionError:
        return UnfinishedUpload(bucket, key, name, None, started)
    modified = max([started, *(part["LastModified"] for part in parts)])
    return UnfinishedUpload(bucket, key, name, sum(part["Size"] for part in parts), modified)
