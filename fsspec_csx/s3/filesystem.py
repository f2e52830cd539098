"""CSXFileSystem, the filesystem that ``s3://`` opens: s3fs with this package's credentials, errors and safe writes."""

from __future__ import annotations

import inspect
import os
import time
from collections import deque
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import fsspec.core
from fsspec.asyn import sync_wrapper
from fsspec.compression import compr
from fsspec.config import apply_config
from s3fs import S3FileSystem

from fsspec_csx.errors import BucketNotFoundError
from fsspec_csx.s3 import (
    async_file,
    buckets,
    delete,
    download,
    interrupt,
    listing,
    many_ranges,
    move,
    names,
    relayed_copy,
    server_copy,
    transactions,
    trees,
    upload,
    versions,
)
from fsspec_csx.s3.block_cache import DEFAULT_SIZE, BlockCache
from fsspec_csx.s3.client import credentials
from fsspec_csx.s3.connection import ConnectedS3, replayable
from fsspec_csx.s3.consistent_read import object_metadata
from fsspec_csx.s3.file import CSXFile
from fsspec_csx.s3.readahead import ReadAhead
from fsspec_csx.s3.transport.concurrency import MAX_REQUESTS
from fsspec_csx.s3.walk import walk, walk_async
from fsspec_csx.s3.wrappers import close_below
from fsspec_csx.settings import backends

_POSITIONAL = tuple(inspect.signature(S3FileSystem.__init__).parameters)[1:]
_ENVIRONMENT: ContextVar[str] = ContextVar("environment")
# The AWS environments of the most recent filesystems, the newest last.
_recent: deque[str] = deque(maxlen=4)
# If more than this many instances are cached, those that no call has returned for this time are dropped.
_CACHED, _UNUSED_SECONDS = 32, 60.0
# Requests that may create a missing bucket.
_CREATES_BUCKET = frozenset({"put_object", "create_multipart_upload", "copy_object"})
# Arguments of ``open`` that only text files have.
_OF_TEXT = ("encoding", "errors", "newline")


def resolve_options(call: Mapping[str, Any], configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a call, completed by those of ``backends.csx.storage.s3``."""
    flags = backends.csx.storage.s3
    cache = {"cache_dir": flags.cache_dir, "cache_size": flags.cache_size}
    options = credentials.resolve_options(call, configured, flags.profile)
    return {**{name: value for name, value in cache.items() if value is not None}, **options}


class _Cached(type(S3FileSystem)):  # type: ignore[misc]
    """fsspec caches one instance for each set of arguments; this class adds the AWS environment and flags to them."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        call = {**dict(zip(_POSITIONAL, args, strict=False)), **kwargs}
        options = resolve_options(call, apply_config(cls, {}))
        # Both the cache token and the instance use this environment, even if another thread changes it meanwhile.
        reset = _ENVIRONMENT.set(credentials.environment_token())
        try:
            _forget_former(cls._cache)
            made = super().__call__(**options)
            made._returned = time.monotonic()
            return made
        finally:
            _ENVIRONMENT.reset(reset)

    @property
    def environment_token(cls) -> str:
        """The AWS environment of the instance that is being created."""
        return _ENVIRONMENT.get()


def _forget_former(cache: dict[str, Any]) -> None:
    """Drop cached instances of old environments and unused options, which would accumulate as credentials change."""
    now = _ENVIRONMENT.get()
    changed = not _recent or _recent[-1] != now
    if changed:
        _recent.append(now)
    elif len(cache) <= _CACHED:
        return
    oldest = time.monotonic() - _UNUSED_SECONDS if len(cache) > _CACHED else 0.0
    for token, made in list(cache.items()):
        if made._returned < oldest or made._environment not in _recent:
            cache.pop(token, None)


class CSXFileSystem(ConnectedS3, metaclass=_Cached):
    """S3 as a file system: ``s3fs.S3FileSystem`` with the same arguments, and in addition

    - credentials by the rules of ``fsspec_csx.s3.client.credentials``, resolved before any data is read or written;
    - errors that say what was refused, by whom, and what to do (``fsspec_csx.errors``);
    - the first write into a missing bucket creates it, where the credentials allow that;
    - files that are published whole or not at all (``fsspec_csx.s3.file.CSXFile``).

    Args:
        profile: name of a profile in the AWS files; ``profile_name`` means the same.
        max_concurrency: the most requests at a time, 128 by default; the actual number adapts to the link.
        cache_dir: a local folder that caches the bytes that open files read; None for no cache.
        cache_size: the most bytes in it, as a number or a text such as "50GB", the default.
        kwargs: those of ``s3fs.S3FileSystem``.

    Raises:
        IncompleteCredentialsError: if only one of ``key`` and ``secret`` is given.
        ValueError: if ``cache_size`` is not a size.
    """

    protocol = ("s3", "s3a", "csx")
    # A file that an exception leaves publishes nothing, so writers need no temporary name.
    atomic_writes = True
    transaction_type = transactions.ExclusiveTransaction
    _writes_create_buckets = True
    _returned = float("inf")  # when a call last returned it; later than now for one that is being made
    _extra_tokenize_attributes = (*S3FileSystem._extra_tokenize_attributes, "environment_token")

    def __init__(
        self,
        *args: Any,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs = {"default_cache_type": ReadAhead.name, "max_concurrency": MAX_REQUESTS, **kwargs}  # _Cached named all
        super().__init__(*args, **kwargs)
        size = DEFAULT_SIZE if cache_size is None else cache_size
        self.block_cache = BlockCache(cache_dir, size) if cache_dir else None
        self._environment = _ENVIRONMENT.get()
        self.last_change: object = None

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the filesystem as a dict for JSON, without secrets; a filesystem made from it resolves credentials."""
        return credentials.without_secrets(super().to_dict(**kwargs))

    async def _sign_in(self, refresh: bool) -> None:
        # The environment has changed since this instance was created: no other caller may get it.
        cache = type(self)._cache
        if self._environment != credentials.environment_token() and cache.get(self._fs_token) is self:
            cache.pop(self._fs_token, None)
        await super()._sign_in(refresh)

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        try:
            return await super()._call_s3(method, *akwarglist, **kwargs)
        except BucketNotFoundError:
            if not self._writes_create_buckets or method not in _CREATES_BUCKET or not replayable(kwargs):
                raise
        await buckets.create_bucket(self, kwargs["Bucket"])
        return await super()._call_s3(method, *akwarglist, **kwargs)

    call_s3 = sync_wrapper(_call_s3)

    # -- buckets ----------------------------------------------------------------------------------------------------

    _mkdir = buckets.mkdir
    makedirs = buckets.makedirs
    _exists = buckets.exists
    _is_bucket_versioned = buckets.takes_url(S3FileSystem._is_bucket_versioned)
    _make_bucket_versioned = buckets.takes_url(S3FileSystem._make_bucket_versioned)
    _rm_versioned_bucket_contents = buckets.takes_url(S3FileSystem._rm_versioned_bucket_contents)
    _list_multipart_uploads = buckets.takes_url(S3FileSystem._list_multipart_uploads)
    _clear_multipart_uploads = buckets.takes_url(S3FileSystem._clear_multipart_uploads)
    _abort_mpu = buckets.takes_url(S3FileSystem._abort_mpu)

    # -- objects, folders and paths ---------------------------------------------------------------------------------

    _info = listing.info
    _isfile = listing.isfile
    _isdir = listing.isdir
    _ls = listing.ls
    _find = listing.find
    _du = listing.du
    _walk = walk_async
    walk = walk
    _glob = names.glob
    _expand_path = names.expand_path
    _object_metadata = object_metadata
    _object_version_info = versions.object_version_info

    # -- from S3 to memory and local files --------------------------------------------------------------------------

    _cat_file = download.cat_file
    _cat_ranges = many_ranges.cat_ranges
    _get_file = download.get_file
    _cat = trees.cat
    _get = trees.get
    _readinto_objects = download.readinto_objects

    # -- from memory and local files to S3 --------------------------------------------------------------------------

    _pipe_file = upload.pipe_file
    _put_file = upload.put_file
    _pipe = trees.pipe
    _put = trees.put
    put = transactions.put
    _touch = upload.touch

    # -- from S3 to S3 ----------------------------------------------------------------------------------------------

    _cp_file = server_copy.cp_file
    _copy = trees.copy
    _mv = move.mv
    _mv_file = move.mv_file
    _merge = server_copy.merge
    _setxattr = server_copy.setxattr
    _take_file = relayed_copy.take_file

    # -- deletions --------------------------------------------------------------------------------------------------

    _rm = delete.rm
    _rm_file = delete.rm_file
    _bulk_delete = delete.bulk_delete
    _rmdir = delete.rmdir

    # Synchronous methods that neither fsspec nor s3fs has.
    mv = interrupt.interruptible(_mv)
    mv_file = interrupt.interruptible(_mv_file)
    object_metadata = interrupt.interruptible(_object_metadata)
    readinto_objects = interrupt.interruptible(_readinto_objects)
    take_file = interrupt.interruptible(_take_file)

    # -- files ------------------------------------------------------------------------------------------------------

    def split_path(self, path: str) -> tuple[str, str, str | None]:
        """Split a path into bucket, key and version; without ``version_aware``, ``?versionId=`` is part of the key."""
        if not (":" in path or "?" in path or path[:1] == "/" or path[-1:] == "/"):  # s3fs would take much longer
            bucket, _, key = path.partition("/")
            return bucket, key, None
        bucket, key, version = super().split_path(path)
        if key and not key.endswith("/"):
            key += path[len(path.rstrip("/")) :]  # older releases of s3fs drop the trailing slashes
        if not self.version_aware and (mark := path.find("?versionId=", len(bucket))) >= 0:
            key += path[mark:]
        return bucket, key, version

    def invalidate_cache(self, path: str | None = None) -> None:
        """Forget the listings of a path's folders, or all listings, and do not keep those that are being made."""
        self.last_change = object()
        if path is None or len(self.dircache):
            super().invalidate_cache(path)

    def open(
        self, path: str, mode: str | None = None, *args: Any, compression: str | None = None, **kwargs: Any
    ) -> Any:
        """Open a file, as ``s3fs.S3FileSystem.open``; closing a compressed file publishes it.

        The default mode is "rb", or "r" if ``encoding``, ``errors`` or ``newline`` is given.
        """
        if mode is None:
            mode = "r" if any(kwargs.get(name) is not None for name in _OF_TEXT) else "rb"
        if compression is None or "b" not in mode:
            return super().open(path, mode, *args, compression=compression, **kwargs)
        file = super().open(path, mode, *args, **kwargs)
        return compr[fsspec.core.get_compression(path, compression)](file, mode=mode[0])

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        acl: Any = False,
        version_id: str | None = None,
        fill_cache: bool | None = None,
        cache_type: str | None = None,
        autocommit: bool = True,
        size: int | None = None,
        requester_pays: bool | None = None,
        cache_options: dict[str, Any] | None = None,
        details: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> CSXFile:
        extra = self.s3_additional_kwargs
        return CSXFile(
            self,
            path,
            mode,
            block_size=block_size or self._block_size(mode),
            acl=acl or extra.get("ACL", False) or extra.get("acl", False),
            version_id=versions.chosen_version(self, path, version_id),
            fill_cache=self.default_fill_cache if fill_cache is None else fill_cache,
            s3_additional_kwargs={**extra, **kwargs},
            cache_type=self.default_cache_type if cache_type is None else cache_type,
            autocommit=autocommit,
            requester_pays=bool(self.req_kw) if requester_pays is None else requester_pays,
            cache_options=cache_options,
            size=size,
            **({"details": details} if details else {}),
        )

    def open_state(self, path: str, details: dict[str, Any]) -> CSXFile:
        """Open for reading the state of an object that the ``details`` of another file describe, without a request."""
        version = {"version_id": details.get("VersionId")} if self.version_aware else {}
        file: CSXFile = self.open(path, "rb", details=details, **version)
        return file

    def _block_size(self, mode: str) -> int | None:
        chosen = self.default_block_size != type(self).default_block_size
        chosen = chosen or self.storage_options.get("default_block_size") is not None
        return int(self.default_block_size) if chosen or mode == "rb" else None

    open_async = async_file.open_async


close_below(CSXFile)
