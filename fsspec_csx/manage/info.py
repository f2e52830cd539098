"""Describes a checkpoint: its contents, its location, and the credentials used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fsspec_csx.formats.checkpoint_info import CheckpointInfo
from fsspec_csx.manage import contents
from fsspec_csx.manage.directory import Directory, File, file_from_info
from fsspec_csx.manage.location import Location
from fsspec_csx.storage.files import is_csx
from fsspec_csx.storage.paths import redacted

if TYPE_CHECKING:
    from fsspec_csx.tensors.source import Source


@dataclass(frozen=True)
class Description:
    """A checkpoint and its location."""

    info: CheckpointInfo  # the contents, with the size of all files
    modified: datetime | None  # the last change of the file, or of the newest in a folder, in UTC; None if unknown
    etag: str | None  # the ETag of an object; otherwise None
    profile: str | None  # the AWS profile in use; None without one, and on other filesystems
    credentials: str | None  # the credentials in use, in a few words without secrets; None on other filesystems
    endpoint: str | None  # the URL of the S3 endpoint; None on other filesystems


def describe(path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> Description:
    """Describe a checkpoint from a few short reads; files that ``load`` reads into memory are read completely."""
    from fsspec_csx.formats import registry  # only here, as it imports torch

    place = Location.of(path, storage_options)
    with place.source() as source:
        info = registry.format_of(source).info(source, place.display_path)
        if source.file is None and (place.is_folder() or contents.is_index(place.name)):
            folder = path if place.is_folder() else place.text.rpartition("/")[0] or "."
            files = _files(Directory(folder, storage_options), source)
            info = replace(info, size=sum(file.size or 0 for file in files))
            modified = max((file.modified for file in files if file.modified), default=None)
            return Description(info, modified, None, *_identity_of(place.fs))
        details = getattr(source.file, "details", None) or _details(place)
    info = replace(info, size=details.get("size") or info.size)
    etag = str(details.get("ETag") or "").strip('"') or None
    return Description(info, file_from_info("", details).modified, etag, *_identity_of(place.fs))


def _files(root: Directory, source: Source) -> list[File]:
    """Return the files of a checkpoint: a manifest or metadata, and the files that it names."""
    below = root.files()
    names = source.files
    if names is None and (layout := contents.listing_layout(below)):
        names = {*layout.own_files(root, below).names}
    return [file for name, file in below.items() if name in (names or ())]


def _details(place: Location) -> Mapping[str, Any]:
    if place.fs is not None:
        details: Mapping[str, Any] = place.fs.info(place.path)
        return details
    status = os.stat(place.path)
    return {"size": status.st_size, "mtime": status.st_mtime}


def _identity_of(fs: Any) -> tuple[str | None, str | None, str | None]:
    if not is_csx(fs):
        return None, None, None
    identity = str(fs._identity)
    profile = fs.session.get_config_variable("profile") or "default" if identity.startswith("profile ") else None
    return profile, identity, redacted(fs._endpoint)
