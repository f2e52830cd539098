"""Checks the text of paths before anything is opened."""

from __future__ import annotations

import os
import re

import fsspec
from fsspec.registry import registry

from fsspec_csx.errors import CheckpointPathError
from fsspec_csx.redaction import without_password

S3 = ("s3", "s3a", "csx")
"""The protocols of S3."""

FOLDER_EXAMPLE = "Give a bucket, or a folder in one, as in 's3://bucket/run'."

_EXAMPLE = "Give bucket and object path, as in 's3://bucket/run/checkpoint_100.mdl'."
# ARNs in place of a bucket's name: https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-access-points.html
_ACCESS_POINT = re.compile(r"arn:[^/]*?:(?:accesspoint|outpost[:/][^:/]+[:/](?:accesspoint|bucket))[:/][^/]+")
# A protocol without its two slashes; a single letter is a Windows drive.
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?![/\\]{2})([/\\]?)")


def checkpoint_path(path: str | os.PathLike[str], *, folder: bool = False) -> str:
    """Check that a path can name a checkpoint; with ``folder``, a folder of checkpoints, such as a bucket.

    Args:
        path: a local path, or any fsspec URL, including chained ones (``simplecache::s3://...``). Every character of a
            name is literal: nothing is decoded, expanded or removed.

    Returns:
        Its text.

    Raises:
        TypeError: if it is neither a ``str`` nor a path object made of one.
        CheckpointPathError: if it is empty, names a folder, has an unknown protocol, or is an S3 URL without ``s3://``,
            bucket or object path.
    """
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        msg = f"A checkpoint path is a str or a pathlib.Path, not {type(text).__name__}. Decode or convert it first."
        raise TypeError(msg)
    if not text:
        what = "folder" if folder else "checkpoint"
        raise CheckpointPathError(f"The path of the {what} is empty.", f"Give a {what}'s name or a URL.")
    name = text
    if not is_local(path):
        name = _naming_link(text)
        _check_protocol(text, name, folder)
    if name.endswith("/") and not folder:
        raise CheckpointPathError(f"{redacted(text)!r} ends in a slash: it names a folder.", "Add the file's name.")
    return text


def is_local(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the form of a local path; others, such as ``file://`` URLs, may also be local."""
    text = os.fspath(path)
    return text.startswith("/") or (isinstance(path, os.PathLike) and not _PROTOCOL.match(text) and "://" not in text)


def redacted(path: str) -> str:
    """Return a path for messages, without the password or the signature of a URL."""
    return without_password(path)


def _protocols() -> set[str]:
    return {*fsspec.available_protocols(), *registry}


def _naming_link(text: str) -> str:
    """Return the link of a chained URL that names the file: the first that is more than a protocol."""
    links = text.split("::")
    for link in links[:-1]:
        if not (link.endswith("://") or link in _protocols()):
            return link
    return links[-1]


def _check_protocol(text: str, name: str, folder: bool) -> None:
    shown = redacted(text)
    if bare := _PROTOCOL.match(name):
        _check_slashes(shown, *bare.groups())
    for link in text.split("::"):
        protocol, separator, _ = link.partition("://")
        if separator and protocol not in _protocols():
            reason = f"fsspec knows no protocol {protocol!r}, which {shown!r} begins with."
            if (lower := protocol.lower()) in _protocols():
                raise CheckpointPathError(reason, f"Write {lower!r}.")
            raise CheckpointPathError(reason, "Check its spelling, or install the package that provides it.")
    protocol, separator, rest = name.partition("://")
    if protocol in S3 and (separator or "::" in text):  # otherwise it is a local file or folder of this name
        _check_s3(shown, rest, folder)
        if "::" in text[text.index(name) :]:
            reason = f"{shown!r} has '::' in its object path, which chains URLs in fsspec."
            raise CheckpointPathError(reason, "Choose another name.")


def _check_slashes(shown: str, protocol: str, slash: str) -> None:
    if protocol in S3:
        found = "one slash" if slash else "none"
        reason = f"{shown!r} is not an S3 URL: '{protocol}:' must be followed by two slashes, here there is {found}."
    elif slash and protocol in _protocols() - {"file", "local"}:
        reason = f"{shown!r} is not a URL: '{protocol}:' must be followed by two slashes, here there is one."
    else:
        return
    remedy = f"Give a str that begins with '{protocol}://'; pathlib.Path makes one slash of the two."
    raise CheckpointPathError(reason, remedy)


def _check_s3(shown: str, rest: str, folder: bool) -> None:
    access_point = _ACCESS_POINT.match(rest)
    bucket = access_point[0] if access_point else rest.partition("/")[0]
    key = rest[len(bucket) :].removeprefix("/")
    missing = " and ".join(part for part, value in (("bucket", bucket), ("object path", key or folder)) if not value)
    if missing:
        raise CheckpointPathError(f"{shown!r} lacks the {missing}.", FOLDER_EXAMPLE if folder else _EXAMPLE)
