"""Paths that name one version of an object, which can be read and deleted but not written."""

from __future__ import annotations

from typing import Any


def check_writable(fs: Any, path: str) -> tuple[str, str]:
    """Return bucket and key of a path for writing; ValueError if the path names a version, or is no valid Unicode."""
    bucket, key, version = fs.split_path(path)
    if version:
        msg = f"{path!r} names a version, and versions cannot be written. Remove ?versionId= from the path."
        raise ValueError(msg)
    try:
        key.encode()
    except UnicodeEncodeError:
        msg = f"{path!r} cannot be written, as names in S3 are UTF-8. Choose another name, or rename the local file."
        raise ValueError(msg) from None
    return bucket, key


def chosen_version(fs: Any, path: str, version_id: str | None) -> str | None:
    """Return the version that an argument or a path names, or None; ValueError if they name different ones."""
    named = fs.split_path(path)[2]
    if version_id:
        _check_known(fs)
    if version_id and named and version_id != named:
        msg = f"{path!r} names another version than version_id={version_id!r}. Name one of them."
        raise ValueError(msg)
    return version_id or named


def _check_known(fs: Any) -> None:
    if not fs.version_aware:
        msg = "Versions are known only to a filesystem that is version-aware. Pass version_aware=True to it."
        raise ValueError(msg)


async def object_version_info(fs: Any, path: str, **kwargs: Any) -> list[dict[str, Any]]:
    """Return the versions of one object, the latest first; unlike s3fs, without those of keys that begin with its key.

    Raises:
        ValueError: unless the filesystem is version-aware.
    """
    _check_known(fs)
    bucket, key, _ = fs.split_path(path)
    found: list[dict[str, Any]] = []
    following: dict[str, str] = {}
    while True:
        page = await fs._call_s3("list_object_versions", Bucket=bucket, Prefix=key, **following)
        listed = [each for name in ("Versions", "DeleteMarkers") for each in page.get(name, [])]
        found += [each for each in page.get("Versions", []) if each["Key"] == key]
        # Keys are sorted, and the key itself comes before longer keys that begin with it.
        if not page.get("IsTruncated") or any(each["Key"] != key for each in listed):
            return found
        following = {"KeyMarker": page["NextKeyMarker"]}
        if page.get("NextVersionIdMarker"):
            following["VersionIdMarker"] = page["NextVersionIdMarker"]
