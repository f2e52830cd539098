"""Sources that are named by a pattern, as a shell would expand it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.manage import kinds
from fsspec_csx.manage.places import Place
from fsspec_csx.paths import redacted

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
    if not _SPECIAL.search(place.path) or place.version or place.exists():
        return None
    fs = place.fs or LocalFileSystem()
    fs.invalidate_cache()
    found = [
        _as_given(place, name) for name, info in fs.glob(place.path, detail=True).items() if _fits(place.fs, name, info)
    ]
    if not found:
        msg = f"No checkpoint fits {redacted(place.text)}. Check the path."
        raise FileNotFoundError(msg)
    return sorted(found)


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
