"""Names: the objects and folders that a path names, and their targets in a copy.

A path names the object with exactly that key, whatever characters it has, or else the folder of that name. Only if
neither exists can it be a pattern.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fsspec.utils import glob_translate, other_paths

from fsspec_csx.errors import ObjectNotFoundError
from fsspec_csx.s3.listing import ListingEntry, by_name, check_depth, list_tree, lookup, with_version

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Expansion:
    """The objects and folders that a path names.

    Attributes:
        root: the path, without protocol and version.
        entries: objects and folders, sorted by name. If the path itself was not looked up, its entry has the type
            "unknown", and the object may be missing.
        is_match: whether the path is a pattern, and the entries match it.
    """

    root: str
    entries: list[ListingEntry]
    is_match: bool = False

    def without_folders(self) -> Expansion:
        return replace(self, entries=self.files)

    @property
    def files(self) -> list[ListingEntry]:
        """The entries that are, or may be, objects."""
        return [each for each in self.entries if each["type"] != "directory"]


def path_of(entry: ListingEntry) -> str:
    """Return the path of an entry, with the version if the expanded path names one."""
    return str(entry.get("path", entry["name"]))


async def glob(fs: Any, path: str, maxdepth: int | None = None, detail: bool = False, **kwargs: Any) -> Any:
    """Return the objects and folders that match a pattern, or the one of exactly that name.

    Args:
        path: ``*`` matches any characters but a slash, ``**`` any, ``?`` one, and ``[abc]`` one of these.
        maxdepth: the most levels of folders that ``**`` matches.
        detail: whether to return entries rather than names.
        kwargs: those of ``find``.

    Raises:
        ValueError: if the pattern names no bucket.
    """
    if path.startswith("*"):
        msg = f"{path!r} names no bucket, and all of S3 cannot be listed. Begin it with a bucket."
        raise ValueError(msg)
    if may_match(fs, path):
        return by_name((await _matches(fs, path, maxdepth, **kwargs))[0], detail)
    try:
        return by_name([with_version(fs, path, await fs._info(path))], detail)
    except FileNotFoundError:
        return by_name([], detail)


def is_pattern(path: str) -> bool:
    """Return whether a path has the characters of a pattern; an object or folder of exactly that name comes first."""
    return bool(_MAGIC.search(path))


def may_match(fs: Any, path: str) -> bool:
    return is_pattern(path) and not fs.split_path(path)[2]


async def _matches(fs: Any, path: str, maxdepth: int | None = None, **kwargs: Any) -> tuple[list[ListingEntry], bool]:
    """Return the entries for a path with special characters, and whether they match it as a pattern."""
    pattern = fs._strip_protocol(path)
    if not path.endswith("/") and not is_pattern(fs.split_path(path)[0]):
        with suppress(FileNotFoundError):
            return [await lookup(fs, path)], False
    root, prefix, depth = _listing_for(pattern, maxdepth)
    kwargs.pop("withdirs", None)
    listed = await list_tree(fs, root, depth, kwargs.pop("prefix", prefix), **kwargs)
    named = [each for each in listed if each["name"] == pattern]
    if named:
        return named, False
    folders_only = path.endswith("/")
    fits = re.compile(glob_translate(pattern + "/" if folders_only else pattern))
    slash = "/" if folders_only or pattern.endswith("/**") else ""

    def matches(entry: ListingEntry) -> bool:
        return bool(fits.match(entry["name"] + (slash if entry["type"] == "directory" else "")))

    return [each for each in listed if matches(each)], True


async def expand(
    fs: Any,
    path: str,
    recursive: bool = False,
    maxdepth: int | None = None,
    *,
    literal: bool = False,
    markers: bool = False,
    ask: bool = True,
) -> Expansion:
    """Look up what a path names; a name without special characters is looked up only if ``recursive``.

    Args:
        literal: whether the path is never a pattern.
        markers: whether to add the markers of folders, as files.
        ask: whether to look up the object of a folder's own name; otherwise its type is "unknown".

    Raises:
        ObjectNotFoundError: if ``recursive`` and nothing is found.
    """
    name, (bucket, key, version) = fs._strip_protocol(path), fs.split_path(path)
    if version:
        name = f"{bucket}/{key}"
        return Expansion(name, [{"name": name, "path": path, "type": "unknown"}])
    if literal or not may_match(fs, path):
        if recursive:
            return Expansion(name, await _expand_folder(fs, path, maxdepth, markers, ask))
        entry = await fs._info(path) if path.endswith("/") else {"name": name, "type": "unknown"}
        return Expansion(entry["name"], [entry])
    found, is_match = await _matches(fs, path, maxdepth, refresh=True)
    if recursive:
        depth = maxdepth - 1 if is_match and maxdepth else maxdepth
        for each in [each for each in found if each["type"] == "directory" and depth != 0]:
            found += await list_tree(fs, each["name"], depth, refresh=True, markers=markers)
        if not is_match and found[0]["type"] == "file":
            found += await list_tree(fs, name, depth, refresh=True, markers=markers)
    unique = {(each["name"], each["type"]): each for each in found}
    return Expansion(name, [unique[key] for key in sorted(unique)], is_match)


async def _expand_folder(fs: Any, path: str, maxdepth: int | None, markers: bool, ask: bool) -> list[ListingEntry]:
    found = await list_tree(fs, path, maxdepth, refresh=True, markers=markers)
    if not fs.split_path(path)[1] or (found and path.endswith("/")):
        return found
    name = fs._strip_protocol(path)
    if found and not ask:
        return [{"name": name, "type": "unknown"}, *found]
    try:
        return [await lookup(fs, name), *found]
    except FileNotFoundError:
        if not found:
            raise
        return found


async def expand_path(
    fs: Any, path: Any, recursive: bool = False, maxdepth: int | None = None, assume_literal: bool = False
) -> list[str]:
    """Return the names of what a path, or a list of paths, names; as ``fsspec.asyn.AsyncFileSystem.expand_path``.

    Raises:
        FileNotFoundError: if nothing is found.
        ValueError: if ``maxdepth`` is less than 1.
    """
    check_depth(maxdepth)
    names: set[str] = set()
    for each in [path] if isinstance(path, str) else path:
        if recursive or (not assume_literal and may_match(fs, each)):
            with suppress(FileNotFoundError):
                found = await expand(fs, each, recursive, maxdepth, literal=assume_literal)
                names.update(fs._strip_protocol(path_of(entry)) for entry in found.entries)
        else:
            names.add(fs._strip_protocol(each))
    if not names:
        raise not_found_error(path)
    return sorted(names)


def not_found_error(path: Any) -> ObjectNotFoundError:
    """Return the error for a path, or a list of paths, for which nothing is found."""
    reason = f"There is no object {path!r}, and none that matches it."
    return ObjectNotFoundError(reason, "Check its name.")


def folder_error(path: Any, verb: str) -> IsADirectoryError:
    """Return the error for a folder where ``recursive`` is needed; ``verb`` is "move" or "delete"."""
    msg = f"{path!r} is a folder, and nothing was {verb}d. Pass recursive=True to {verb} everything below it."
    return IsADirectoryError(msg)


def _listing_for(pattern: str, maxdepth: int | None) -> tuple[str, str, int | None]:
    """Return the folder, the prefix of names and the depth of a listing that contains all possible matches."""
    match = _MAGIC.search(pattern)
    literal = pattern[: match.start()] if match else pattern
    root, slash, prefix = literal.rpartition("/")
    rest = pattern[len(root) + len(slash) :]
    if "**" not in rest:
        return root, prefix, rest.count("/") + 1
    if maxdepth is None:
        return root, prefix, None
    return root, prefix, rest.count("/") - rest[rest.find("**") :].count("/") + maxdepth


class PathPair(NamedTuple):
    """An object or folder, and its target; the size is None if it is not known."""

    source: str
    target: str
    type: str
    size: int | None = None


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
            pairs.append(PathPair(path_of(entry), goal, entry["type"], entry.get("size")))
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


def local_pairs(pairs: Iterable[PathPair]) -> list[PathPair]:
    """Return the pairs whose local targets can exist together: without empty objects by which tools mark folders.

    Raises:
        IsADirectoryError: if another object's name is also a folder's, which local file systems do not allow.
        ValueError: if two objects would become one file.
    """
    files = [each._replace(target=os.path.abspath(each.target)) for each in pairs if each.type != "directory"]
    sources = _sources(files, "Fetch one of them alone.")
    sizes = {each.source: each.size for each in files}
    direct = {os.path.dirname(path) for path in sources}
    markers = set()
    for folder in direct.union(*map(_parents, direct)).intersection(sources):
        if sizes[sources[folder]] != 0:
            msg = f"{sources[folder]!r} is an object and a folder; {folder!r} cannot be both. Fetch the object alone."
            raise IsADirectoryError(msg)
        markers.add(sources[folder])
    return [each for each in pairs if each.type == "directory" or each.source not in markers]


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
