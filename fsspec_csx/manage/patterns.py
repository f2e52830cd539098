"""Sources that are named by a pattern, as a shell would expand it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.manage import kinds
from fsspec_csx.manage.list import Found, checkpoints, order
from fsspec_csx.manage.location import Place
from fsspec_csx.storage.paths import redacted

_SPECIAL = re.compile(r"[*?\[]")


def expanded(path: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> list[str] | None:
    """The paths of the files, and of the folders that are checkpoints, which a pattern fits.

    ``*`` stands for any characters but a slash, ``**`` for any, ``?`` for one, ``[abc]`` for one of these.

    Args:
        path: a local path or an fsspec URL.
        options: arguments for the filesystem.

    Returns:
        None if it is the name of something that exists, or is no pattern.

    Raises:
        FileNotFoundError: if nothing fits.
    """
    place = Place.of(path, options)
    matches = _matches(place)
    if matches is None:
        return None
    found = [_as_given(place, name) for name, info in matches.items() if _fits(place.fs, name, info)]
    if not found:
        msg = f"No checkpoint fits {redacted(place.text)}. Check the path."
        raise FileNotFoundError(msg)
    return sorted(found)


def folders(path: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> list[str] | None:
    """The paths of the folders which a pattern fits; as ``expanded``."""
    if not _SPECIAL.search(os.fspath(path)):
        return None
    place = Place.of(path, options)
    matches = _matches(place)
    if matches is None:
        return None
    found = [_as_given(place, name) for name, info in matches.items() if info["type"] == "directory"]
    if not found:
        msg = f"No folder fits {redacted(place.text)}. Check the path: a pattern of roots, and not of checkpoints."
        raise FileNotFoundError(msg)
    return sorted(found)


def listed(
    path: str | os.PathLike[str], *, recursive: bool = False, options: Mapping[str, Any] | None = None
) -> list[Found]:
    """The checkpoints under a root, or those that a pattern fits, and those under the other folders that it fits.

    Args:
        path: of the root, or a pattern as of ``expanded``.
        recursive: as of ``checkpoints``.
        options: arguments for the filesystem.

    Raises:
        OSError: as of ``checkpoints``; FileNotFoundError if nothing fits.
    """
    place = Place.of(path, options) if _SPECIAL.search(os.fspath(path)) else None
    matches = _matches(place) if place else None
    if matches is None or place is None:
        return checkpoints(path, recursive=recursive, storage_options=options)
    found: dict[str, Found] = {}
    names = {_as_given(place, name): info["type"] == "directory" for name, info in matches.items()}
    for parent in dict.fromkeys(name.rpartition("/")[0] or "." for name in names):
        found |= {each.path: each for each in checkpoints(parent, storage_options=options) if each.path in names}
    for name, is_folder in names.items():
        if is_folder and name not in found:
            found |= {each.path: each for each in checkpoints(name, recursive=recursive, storage_options=options)}
    if not names:
        msg = f"No checkpoint fits {redacted(place.text)}. Check the path."
        raise FileNotFoundError(msg)
    return sorted(found.values(), key=order)


def _matches(place: Place) -> dict[str, Mapping[str, Any]] | None:
    """What a pattern fits, by paths on the filesystem; None if it is the name of something, or is no pattern."""
    if not _SPECIAL.search(place.path) or place.version or place.exists():
        return None
    fs = place.fs or LocalFileSystem()
    fs.invalidate_cache()
    found: dict[str, Mapping[str, Any]] = fs.glob(place.path, detail=True)
    return {name.rstrip("/"): info for name, info in found.items()}


def _as_given(place: Place, path: str) -> str:
    """A path on the filesystem, as ``load`` takes it."""
    if place.path.endswith(place.text):  # a path from the working folder on
        return path[len(place.path) - len(place.text) :]
    inner = place.path.lstrip("/")
    return place.text.removesuffix(inner) + path.lstrip("/") if place.text.endswith(inner) else path


def _fits(fs: Any, path: str, info: Mapping[str, Any]) -> bool:
    if info["type"] != "directory":
        return not kinds.is_leftover(path.rpartition("/")[2])
    names = os.listdir(path) if fs is None else [each.rpartition("/")[2] for each in fs.ls(path, detail=False)]
    return kinds.is_sharded(names)
