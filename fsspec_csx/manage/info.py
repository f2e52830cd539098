"""What there is to tell of a checkpoint: what it holds, where it lies, and who asks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fsspec_csx.formats.checkpoint_info import CheckpointInfo
from fsspec_csx.formats.dcp.folder import MANIFEST
from fsspec_csx.manage.directory import Directory, File, file_from_info
from fsspec_csx.manage.location import Location
from fsspec_csx.storage.paths import redacted

if TYPE_CHECKING:
    from fsspec_csx.tensors.source import Source


@dataclass(frozen=True)
class Description:
    """What is known of a checkpoint and of its place.

    Attributes:
        info: what it holds; its size is that of all of its files.
        modified: when it was last changed, in UTC, and of a folder its newest file; None if the filesystem does not
            tell.
        etag: of the object; None where there is no such thing, and of a folder.
        profile: the profile of the AWS files that is used; None for none, and where there is no S3.
        credentials: whose credentials are used, in a few words and without a secret; None where there is no S3.
        endpoint: the URL of the S3 endpoint; None where there is no S3.
    """

    info: CheckpointInfo
    modified: datetime | None
    etag: str | None
    profile: str | None
    credentials: str | None
    endpoint: str | None


def describe(path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> Description:
    """Tell what there is to tell of a checkpoint, from a few short reads; what ``load`` reads whole, so does this.

    Args:
        path: a local path or an fsspec URL, as of ``load``.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if the file is empty, cut short, damaged, or of another format.
        UnsafeCheckpointError: a ValueError, if the file names what may run code.
        OSError: whatever the filesystem raised, as it raised it; FileNotFoundError and others are among it.
    """
    from fsspec_csx.formats import reader  # only here, as it imports torch

    place = Location.of(path, storage_options)
    with place.source() as source:
        info = reader.describe(source, name=place.display_path)
        if source.file is None and place.is_folder():
            files = _files(Directory(path, storage_options), source)
            info = replace(info, size=sum(file.size or 0 for file in files))
            modified = max((file.modified for file in files if file.modified), default=None)
            return Description(info, modified, None, *_asked(place.fs))
        details = getattr(source.file, "details", None) or _details(place)
    info = replace(info, size=details.get("size") or info.size)
    etag = str(details.get("ETag") or "").strip('"') or None
    return Description(info, file_from_info("", details).modified, etag, *_asked(place.fs))


def _files(root: Directory, source: Source) -> list[File]:
    """The files of a checkpoint: those that a manifest names, and it; of a Cerebras checkpoint all that are there."""
    below = [file for files in root.tree().values() for file in files]
    shards: set[str] | None = getattr(source, "shards", None)
    return [file for file in below if shards is None or file.name == MANIFEST or file.name in shards]


def _details(place: Location) -> Mapping[str, Any]:
    """What the filesystem tells of a file."""
    if place.fs is not None:
        details: Mapping[str, Any] = place.fs.info(place.path)
        return details
    status = os.stat(place.path)
    return {"size": status.st_size, "mtime": status.st_mtime}


def _asked(fs: Any) -> tuple[str | None, str | None, str | None]:
    """Profile, credentials and endpoint of the S3 filesystem that a path leads to."""
    while fs is not None and not hasattr(fs, "_identity"):
        fs = getattr(fs, "fs", None)
    if fs is None:
        return None, None, None
    identity = str(fs._identity)
    profile = fs.session.get_config_variable("profile") or "default" if identity.startswith("profile ") else None
    return profile, identity, redacted(fs._endpoint)
