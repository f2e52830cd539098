"""Creating, looking up and naming buckets."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import fsspec.core
from fsspec.asyn import sync

from fsspec_csx.errors import AccessDeniedError, BucketNotFoundError
from fsspec_csx.s3.client.error_mapping import code_of
from fsspec_csx.s3.directory_buckets import is_directory_bucket

_NO_CONSTRAINT = (None, "", "us-east-1", "aws-global")


async def create_bucket(fs: Any, bucket: str, acl: str | None = None, region: str | None = None) -> None:
    """Create a bucket in the session's region; it is no error if the user owns it already.

    Raises:
        AccessDeniedError: if the credentials do not allow it, or the name belongs to another user.
        BucketNotFoundError: if it is a directory bucket, which needs more than a name.
        InvalidBucketNameError: if the server refuses the name.
    """
    if is_directory_bucket(bucket):
        reason = f"There is no directory bucket {bucket!r}."
        raise BucketNotFoundError(reason, "Create it in its zone with another tool, such as aws s3api create-bucket.")
    await fs.set_session()
    region = region or fs._s3.meta.region_name
    options: dict[str, Any] = {"ACL": acl} if acl else {}
    if region not in _NO_CONSTRAINT:
        options["CreateBucketConfiguration"] = {"LocationConstraint": region}
    try:
        await fs._call_s3("create_bucket", Bucket=bucket, **options)
    except FileExistsError:
        pass  # another writer of this user created it first
    except AccessDeniedError as error:
        if code_of(error.__cause__ or error) != "BucketAlreadyExists":
            reason = f"The bucket {bucket!r} does not exist, and {fs._identity} may not create it."
            raise AccessDeniedError(reason, "Name an existing bucket, or ask for the right to create one.") from error
        seen = False
        with contextlib.suppress(PermissionError):
            seen = await exists(fs, bucket)
        if not seen:  # some stores also answer so if this user has just created it
            raise
    fs.invalidate_cache("")
    fs.invalidate_cache(bucket)


async def mkdir(fs: Any, path: str, acl: Any = False, create_parents: bool = True, **kwargs: Any) -> None:
    bucket, key, _ = fs.split_path(fs._strip_protocol(path).rstrip("/"))
    if not bucket:
        msg = f"{path!r} names no bucket. Give one, as in s3://bucket."
        raise ValueError(msg)
    if await fs._exists(bucket):
        if not key:
            msg = f"The bucket {bucket!r} exists already. Use makedirs with exist_ok=True to accept that."
            raise FileExistsError(msg)
    elif key and not create_parents:
        raise BucketNotFoundError(f"There is no bucket {bucket!r}.", "Create it first, or pass create_parents=True.")
    else:
        await create_bucket(fs, bucket, acl or None, kwargs.get("region_name"))


def takes_url(coroutine: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method that takes the name of a bucket also take its URL, such as s3://bucket/."""

    @functools.wraps(coroutine)
    async def call(fs: Any, bucket: str, *args: Any, **kwargs: Any) -> Any:
        name, key, _ = fs.split_path(fs._strip_protocol(bucket).rstrip("/"))
        if key or not name:
            msg = f"{bucket!r} is not the name of a bucket. Give one alone, as in s3://bucket."
            raise ValueError(msg)
        return await coroutine(fs, name, *args, **kwargs)

    return call


def makedirs(fs: Any, path: str, exist_ok: bool = False) -> None:
    """Create the bucket of a path if it is missing; S3 has no folders to create below it.

    Raises:
        AccessDeniedError: if the credentials allow neither to see nor to create the bucket.
        FileExistsError: if the path is a bucket that exists, unless ``exist_ok``.
    """
    # fsspec.open calls this before every write; the write itself creates a missing bucket, without an extra request.
    if exist_ok and sys._getframe(1).f_code is fsspec.core.open_files.__code__:
        return
    sync(fs.loop, fs._makedirs, path, exist_ok=exist_ok)


async def exists(fs: Any, path: str) -> bool:
    bucket, key, _ = fs.split_path(path)
    if key or not bucket:
        try:
            await fs._info(path)
        except FileNotFoundError:
            return False
        return True
    refusals = []
    for method in ("head_bucket", "get_bucket_location", *(["list_objects_v2"] if fs.req_kw else [])):
        try:
            await fs._call_s3(method, {"MaxKeys": 1}, Bucket=bucket)  # s3fs drops MaxKeys for other methods
        except FileNotFoundError:
            return False
        except PermissionError as error:
            refusals.append(error)
        else:
            return True
    raise refusals[0]
