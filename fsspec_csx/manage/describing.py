"""What there is to tell of a checkpoint: what it holds, where it lies, and who asks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from fsspec_csx.checkpoint import _opened, _size, locate
from fsspec_csx.inspection import CheckpointInfo
from fsspec_csx.paths import checkpoint_path, redacted

# What filesystems call the time of the last change.
_CHANGED = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


@dataclass(frozen=True)
class Description:
    """What is known of a checkpoint and of its place.

    Attributes:
        info: what it holds.
        modified: when it was last changed, in UTC; None if the filesystem does not tell.
        etag: of the object; None where there is no such thing.
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
    text = checkpoint_path(path)
    from fsspec_csx.formats import reading  # only here, as it imports torch
    from fsspec_csx.formats.source import Source

    fs, inner = locate(path, text, storage_options)
    with _opened(fs, inner) as file:
        info = reading.describe(Source(file, _size(file)), name=redacted(text))
        if fs is None:
            return Description(info, _moment(os.fstat(file.fileno()).st_mtime), None, None, None, None)
        details = getattr(file, "details", None) or fs.info(inner)
    modified = next((moment for name in _CHANGED if (moment := _moment(details.get(name)))), None)
    etag = str(details.get("ETag") or "").strip('"') or None
    return Description(info, modified, etag, *_asked(fs))


def _moment(told: Any) -> datetime | None:
    """A time as filesystems tell it: a datetime, its text, or seconds since 1970."""
    if isinstance(told, (int, float)):
        return datetime.fromtimestamp(told, timezone.utc)
    if isinstance(told, str):
        try:
            told = datetime.fromisoformat(told.replace("Z", "+00:00"))
        except ValueError:
            return None
    if not isinstance(told, datetime):
        return None
    return told.astimezone(timezone.utc) if told.tzinfo else told.replace(tzinfo=timezone.utc)


def _asked(fs: Any) -> tuple[str | None, str | None, str | None]:
    """Profile, credentials and endpoint of the S3 filesystem that a path leads to."""
    while fs is not None and not hasattr(fs, "_identity"):
        fs = getattr(fs, "fs", None)
    if fs is None:
        return None, None, None
    identity = str(fs._identity)
    profile = fs.session.get_config_variable("profile") or "default" if identity.startswith("profile ") else None
    return profile, identity, redacted(fs._endpoint)
