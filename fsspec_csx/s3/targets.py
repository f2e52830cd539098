"""Pairs of a source and a target, for copies, moves, downloads and uploads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fsspec.utils import other_paths

from fsspec_csx.s3.names import Expansion, path_of


class PathPair(NamedTuple):
    """An object or folder, and its target."""

    source: str
    target: str
    type: str


def pair_paths(found: Sequence[Expansion], target: str, *, is_list: bool, into: bool) -> list[PathPair]:
    """Return the targets of expanded sources, by the rules of fsspec.

    Args:
        target: the name for the single source, or the folder for all sources.
        is_list: whether the sources are a list, which goes into a folder.
        into: whether the target is a folder for the single source.
    """
    target = target.rstrip("/")
    pairs: list[PathPair] = []
    for each in found:
        names = [str(entry["name"]) for entry in each.entries]
        if each.is_match and is_list:
            targets = [f"{target}/{name.rpartition('/')[2]}" for name in names]
        elif each.is_match:
            targets = list(other_paths(names, target, exists=len(names) == 1)) if names else []
        else:
            base = each.root.rpartition("/")[0] if is_list or into else each.root
            targets = [target + (name[len(base) :] if base else f"/{name}") for name in names]
        for entry, goal in zip(each.entries, targets, strict=True):
            pairs.append(PathPair(path_of(entry), goal, entry["type"]))
    return pairs


def zip_paths(sources: Sequence[str], targets: Sequence[str]) -> list[PathPair]:
    """Pair sources with targets; ValueError if their numbers differ."""
    if len(sources) != len(targets):
        msg = f"There are {len(sources)} sources and {len(targets)} targets. Give as many of each."
        raise ValueError(msg)
    return [PathPair(source, target, "file") for source, target in zip(sources, targets, strict=True)]


def check_distinct(pairs: Iterable[PathPair]) -> None:
    """Raise ValueError if targets would replace one another, or a source that is still to be read."""
    files = [each for each in pairs if each.type != "directory"]
    sources = _sources(files, "Give each a target of its own.")
    for each in files:
        if sources.get(each.source, each.source) != each.source:
            msg = f"{each.source!r} is a source, and the target of {sources[each.source]!r}. Choose another target."
            raise ValueError(msg)


def check_local(pairs: Iterable[PathPair]) -> None:
    """Check that local targets can exist together.

    Raises:
        IsADirectoryError: if an object's name is also a folder's, which local file systems do not allow.
        ValueError: if two objects would become one file.
    """
    files = [each._replace(target=os.path.abspath(each.target)) for each in pairs if each.type != "directory"]
    sources = _sources(files, "Fetch one of them alone.")
    direct = {os.path.dirname(path) for path in sources}
    for folder in direct.union(*map(_parents, direct)):
        if folder in sources:
            msg = f"{sources[folder]!r} is an object and a folder; {folder!r} cannot be both. Fetch the object alone."
            raise IsADirectoryError(msg)


def _sources(files: Iterable[PathPair], remedy: str) -> dict[str, str]:
    """Return the source of each target; ValueError if a target has two."""
    sources: dict[str, str] = {}
    for each in files:
        if (former := sources.setdefault(each.target, each.source)) != each.source:
            msg = f"{former!r} and {each.source!r} would both become {each.target!r}. {remedy}"
            raise ValueError(msg)
    return sources


def _parents(path: str) -> Iterable[str]:
    while (parent := os.path.dirname(path)) != path:
        yield parent
        path = parent
