"""Copies or renames one file, with the fastest method for the two filesystems."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from fsspec_csx.errors import ChecksumError, CSXError
from fsspec_csx.manage.location import Location
from fsspec_csx.storage.atomic import atomic_write, publish, resolve_target
from fsspec_csx.storage.files import checksum_of, chunks
from fsspec_csx.storage.progress import AdvanceCallback

RESUME_HINT = "Run the same command again to resume."
# ETags: the MD5 of an object, or the MD5 of its parts' MD5s.
_MD5 = re.compile(r'"?[0-9a-f]{32}(?:-\d+)?"?')


def copy_file(
    source: Location, target: Location, advance: Callable[[int], object], *, overwrite: bool, verified: bool = False
) -> int:
    """Copy a file completely or not at all; an interrupted copy of a large file from or to S3 resumes.

    With ``verified`` it compares all bytes, as the source will be deleted. Raises an OSError if the source changed
    during the copy, a ChecksumError if the copy differs.
    """
    before = source.state()
    target.make_parents()
    mode = "overwrite" if overwrite else "create"
    try:
        try:
            _copy(source, target, advance, mode)
        except Exception as error:
            if not _is_unsupported(error):
                raise
            _copy_in_chunks(source, target, advance, mode)
    except CSXError as error:
        if isinstance(error, (ConnectionError, TimeoutError)) and _resumable(source, target):
            error.remedy = f"{error.remedy} {RESUME_HINT}".lstrip()
        raise
    source.check_state(before)
    try:
        equal = same_content(source, target) if verified else target.state()["size"] == before["size"]
    except CSXError as error:
        error.mark_maybe_applied(f"the copy to {target.display_path}")
        raise
    if not equal:
        reason = f"{target.display_path} is a copy of {source.display_path}, but not the same."
        raise ChecksumError(reason, "Copy it again, with --force or overwrite=True.")
    return int(before["size"])


def rename_file(source: Location, target: Location, *, overwrite: bool) -> bool:
    """Try to move a local file by renaming it, and return whether that worked."""
    if source.fs is not None or target.fs is not None or os.path.islink(source.path):
        return False
    path, _ = resolve_target(target.path)
    if not os.access(os.path.dirname(os.path.realpath(source.path)), os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), source.path)
    try:
        publish(source.path, path, exclusive=not overwrite)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _copy(source: Location, target: Location, advance: Callable[[int], object], mode: str) -> None:
    options: dict[str, Any] = {"callback": AdvanceCallback(advance), "mode": mode, "resumable": True}
    if not _resumable(source, target):
        _copy_in_chunks(source, target, advance, mode)
    elif target.fs is None:
        source.fs.get_file(source.path, target.path, **options)
    elif source.fs is None:
        target.fs.put_file(source.path, target.path, **options)
    elif source.fs == target.fs:
        target.fs.cp_file(source.path, target.path, **options)
    else:
        target.fs.take_file(source.fs, source.path, target.path, **options)


def _resumable(source: Location, target: Location) -> bool:
    """Return whether both sides are S3 or local, at least one is S3, and there is no cache between."""
    sides = [place.is_csx or place.fs is None for place in (source, target)]
    return all(sides) and (source.is_csx or target.is_csx) and target.through[0] in (None, target.fs)


def _copy_in_chunks(source: Location, target: Location, advance: Callable[[int], object], mode: str) -> None:
    before = source.state()
    with source.opened() as file, atomic_write(*target.through, exclusive=mode == "create") as written:
        for chunk in chunks(file):
            written.write(chunk)
            advance(len(chunk))
        source.check_state(before)


def _is_unsupported(error: Exception) -> bool:
    from fsspec_csx.s3.client.error_mapping import code_of  # only here, as it imports botocore

    return code_of(error) == "NotImplemented"


def same_content(one: Location, other: Location) -> bool:
    """Return whether two files have the same bytes, by the servers' checksums or else by reading."""
    if one.state()["size"] != other.state()["size"]:
        return False
    stamps = one.stamp(), other.stamp()
    if stamps[0] and stamps[1]:
        if stamps[0].algorithm and stamps[0].algorithm is stamps[1].algorithm:
            return stamps[0].checksum == stamps[1].checksum
        if stamps[0].etag == stamps[1].etag and _MD5.fullmatch(stamps[0].etag):
            return True
    for stamp, read in zip(stamps, (other, one), strict=True):
        if stamp and stamp.algorithm:
            with read.opened() as file:
                return stamp.algorithm.encoded(checksum_of(file, stamp.algorithm.compute)) == stamp.checksum
    with one.opened() as file, other.opened() as second:
        return all(mine == its for mine, its in zip_longest(chunks(file), chunks(second)))
