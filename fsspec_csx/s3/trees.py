"""Trees: copying, downloading, uploading and reading many objects, folders, patterns and lists of paths.

A source is a name, a pattern, or a list of them. The target of one name is a name, or a folder to put it into; the
target of many is a folder or a list of names. ``recursive`` adds what is below folders, down to ``maxdepth`` levels;
without it folders are skipped, as everywhere in fsspec. A path is a pattern only if nothing has exactly that name. All
targets are checked before anything is written.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.implementations.local import LocalFileSystem, make_path_posix, trailing_sep
from fsspec.utils import is_exception

from fsspec_csx.s3.download import cat_file, check_inside
from fsspec_csx.s3.download import get_file as get_one
from fsspec_csx.s3.first_bytes import FirstBytes
from fsspec_csx.s3.listing import check_depth
from fsspec_csx.s3.many_objects import cat_files, get_files, is_not_overridden, pipe_files, put_files
from fsspec_csx.s3.names import (
    Expansion,
    PathPair,
    check_distinct,
    expand,
    is_pattern,
    local_pairs,
    not_found_error,
    pair_paths,
    path_of,
    zip_paths,
)
from fsspec_csx.s3.transport.compat import run_in_chunks
from fsspec_csx.s3.versions import check_writable


async def copy(
    fs: Any,
    path1: Any,
    path2: Any,
    recursive: bool = False,
    on_error: str | None = None,
    maxdepth: int | None = None,
    batch_size: int | None = None,
    **kwargs: Any,
) -> None:
    """Copy objects on the server; as ``fsspec.asyn.AsyncFileSystem.copy``.

    Args:
        on_error: "ignore", the default if ``recursive``, skips missing objects; "raise" raises.

    Raises:
        FileNotFoundError: if nothing has the name or matches the pattern.
        ValueError: before anything is copied, if a target names a version, or two sources have one target.
    """
    pairs = await copy_pairs(fs, path1, path2, recursive, maxdepth)
    check_distinct(pairs)
    files = [each for each in pairs if each.type != "directory" and not becomes_bucket(fs, each)]
    calls = [_unless_folder(fs, fs._cp_file, each, **kwargs) for each in files]
    size = batch_size or fs.batch_size
    results = await run_in_chunks(calls, batch_size=size, return_exceptions=True, nofiles=True)
    ignored = FileNotFoundError if (on_error or ("ignore" if recursive else "raise")) == "ignore" else ()
    for error in filter(is_exception, results):
        if not isinstance(error, ignored):
            raise error


async def copy_pairs(fs: Any, path1: Any, path2: Any, recursive: bool, maxdepth: int | None) -> list[PathPair]:
    """Return the objects and folders to copy, with their targets."""
    if isinstance(path1, (list, tuple)) and isinstance(path2, (list, tuple)):
        pairs = zip_paths([_plain(fs, each) for each in path1], [_plain(fs, each) for each in path2])
    else:
        check_writable(fs, path2)
        found = await _sources(fs, path1, recursive, maxdepth, markers=True)
        is_list = not isinstance(path1, str)
        into = not is_list and not found[0].is_match and await _goes_into(fs, path1, path2)
        pairs = pair_paths(found, fs._strip_protocol(path2), is_list=is_list, into=into)
    for each in pairs:
        check_writable(fs, each.target)
    return pairs


def becomes_bucket(fs: Any, pair: PathPair) -> bool:
    """Return whether a pair copies the marker of a folder to a bucket, which needs none."""
    return pair.size == 0 and pair.source.endswith("/") and not fs.split_path(pair.target)[1]


def _plain(fs: Any, path: str) -> str:
    bucket, key, version = fs.split_path(path)
    return f"{bucket}/{key}" + (f"?versionId={version}" if version else "")


async def _sources(fs: Any, path: Any, recursive: bool, maxdepth: int | None, **kwargs: Any) -> list[Expansion]:
    check_depth(maxdepth)
    paths = [path] if isinstance(path, str) else list(path)
    found = [await expand(fs, each, recursive, maxdepth, **kwargs) for each in paths]
    if not any(each.entries for each in found):
        raise not_found_error(path)
    return found if recursive and maxdepth is None else [each.without_folders() for each in found]


async def _goes_into(fs: Any, source: str, target: str) -> bool:
    """Return whether the target is a folder that the source goes into."""
    return not trailing_sep(source) and (trailing_sep(target) or await fs._isdir(target))


async def _unless_folder(fs: Any, call: Callable[..., Coroutine[Any, Any, Any]], pair: PathPair, **kwargs: Any) -> Any:
    """Call a function for an object; skip a folder, as fsspec does."""
    try:
        return await call(pair.source, pair.target, **kwargs)
    except FileNotFoundError:
        if pair.type != "unknown" or not await fs._isdir(pair.source):
            raise


async def get(
    fs: Any,
    rpath: Any,
    lpath: Any,
    recursive: bool = False,
    callback: Callback = DEFAULT_CALLBACK,
    maxdepth: int | None = None,
    **kwargs: Any,
) -> Any:
    """Download objects to local files; as ``fsspec.asyn.AsyncFileSystem.get``.

    Raises:
        FileNotFoundError: if nothing has the name or matches the pattern.
        IsADirectoryError: before any download, if the name of an object that is not empty is also a folder's.
        ValueError: before any download, if a key leads out of the target folder, or two objects would become one file.
    """
    if isinstance(rpath, (list, tuple)) and isinstance(lpath, (list, tuple)):
        pairs = zip_paths(rpath, [str(each) for each in lpath])
    else:
        target = make_path_posix(lpath)
        found = await _sources(fs, rpath, recursive, maxdepth)
        exists = trailing_sep(lpath) or os.path.isdir(target)
        is_list = not isinstance(rpath, str)
        into = not is_list and not found[0].is_match and exists and not trailing_sep(rpath)
        pairs = pair_paths(found, target, is_list=is_list, into=into)
    for pair in pairs:
        check_inside(pair.source, pair.target)
    pairs = local_pairs(pairs)
    for folder in {pair.target if pair.type == "directory" else os.path.dirname(pair.target) for pair in pairs}:
        os.makedirs(folder or ".", exist_ok=True)
    files = [each for each in pairs if each.type != "directory"]
    size = kwargs.pop("batch_size", fs.batch_size)
    callback.set_size(len(files))
    get_file = callback.branch_coro(fs._get_file)
    if is_not_overridden(fs, "_get_file", get_one) and not kwargs:

        async def alone(number: int, head: FirstBytes | None) -> None:
            await _unless_folder(fs, get_file, files[number], **({"head": head} if head else {}))

        return await get_files(fs, [(each.source, each.target) for each in files], alone, callback, size)
    calls = [_unless_folder(fs, get_file, each, **kwargs) for each in files]
    return await run_in_chunks(calls, batch_size=size, callback=callback)


async def cat(
    fs: Any, path: Any, recursive: bool = False, on_error: str = "raise", batch_size: int | None = None, **kwargs: Any
) -> Any:
    """Return the bytes of an object; or, for a list or a pattern, a dict of the bytes of many by name.

    Args:
        on_error: "raise", "return" (exceptions instead of bytes), or "omit" (leave out those of many that failed).
    """
    found = await _sources(fs, path, recursive, None)
    names = list(dict.fromkeys(path_of(entry) for each in found for entry in each.files))
    if not names:
        raise not_found_error(path)
    size = batch_size or fs.batch_size
    if is_not_overridden(fs, "_cat_file", cat_file) and not kwargs:
        read = await cat_files(fs, names, size)
    else:
        calls = [fs._cat_file(each, **kwargs) for each in names]
        read = await run_in_chunks(calls, batch_size=size, return_exceptions=True, nofiles=True)
    single = isinstance(path, str) and not found[0].is_match
    single = single and [each["name"] for each in found[0].files] == [found[0].root]
    if on_error == "raise" or (on_error == "omit" and single):
        for error in filter(is_exception, read):
            raise error
    if single:
        return read[0]
    pairs = zip(names, read, strict=True)
    return {name: data for name, data in pairs if on_error != "omit" or not is_exception(data)}


async def put(
    fs: Any,
    lpath: Any,
    rpath: Any,
    recursive: bool = False,
    callback: Callback = DEFAULT_CALLBACK,
    batch_size: int | None = None,
    maxdepth: int | None = None,
    **kwargs: Any,
) -> Any:
    """Upload local files; as ``fsspec.asyn.AsyncFileSystem.put``.

    Raises:
        FileNotFoundError: if nothing has the name or matches the pattern.
        ValueError: before any upload, if a target names a version, or two files have one target.
    """
    if isinstance(lpath, (list, tuple)) and isinstance(rpath, (list, tuple)):
        pairs = zip_paths([os.path.abspath(each) for each in lpath], rpath)
    else:
        check_writable(fs, rpath)
        is_list = isinstance(lpath, (list, tuple))
        found = [_expand_local(each, recursive, maxdepth) for each in (lpath if is_list else [lpath])]
        if not any(each.entries for each in found):
            raise not_found_error(lpath)
        if not is_list and (not recursive or maxdepth is not None):
            found = [each.without_folders() for each in found]
        into = not is_list and not found[0].is_match and await _goes_into(fs, os.fspath(lpath), rpath)
        pairs = pair_paths(found, fs._strip_protocol(rpath), is_list=is_list, into=into)
    for pair in pairs:
        check_writable(fs, pair.target)
    check_distinct(pairs)
    statuses = [_status(each.source) for each in pairs]
    with_status = zip(pairs, statuses, strict=True)
    files = [(pair.source, pair.target, status) for pair, status in with_status if not _is_folder(status)]
    if pairs and not files:
        await fs._makedirs(pairs[0].target, exist_ok=True)
    callback.set_size(len(files))
    put_file = callback.branch_coro(fs._put_file)
    alone = lambda number: put_file(*files[number][:2], **kwargs)  # noqa: E731
    await put_files(fs, files, alone, callback, kwargs, batch_size or fs.batch_size)


async def pipe(fs: Any, path: Any, value: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
    """Write bytes to objects.

    Args:
        path: a name, or a mapping of names to bytes.
        value: the bytes, if ``path`` is a name.

    Raises:
        ValueError: before any upload, if a path names a version.
    """
    named: Mapping[str, Any] = {path: value} if isinstance(path, str) else path
    contents = {_plain(fs, each): data for each, data in named.items()}
    for each in contents:
        check_writable(fs, each)
    alone = lambda name: fs._pipe_file(name, contents[name], **kwargs)  # noqa: E731
    return await pipe_files(fs, contents, alone, kwargs, batch_size or fs.batch_size)


def _expand_local(path: str | os.PathLike[str], recursive: bool, maxdepth: int | None) -> Expansion:
    """Return what a local path names; as on S3, a name comes before a pattern."""
    local = LocalFileSystem()
    root = local._strip_protocol(make_path_posix(path))
    if is_pattern(root) and not os.path.lexists(root):
        names: list[str] = []
        with suppress(FileNotFoundError):
            names = local.expand_path(root, recursive=recursive, maxdepth=maxdepth)
        return Expansion(root, [_local_entry(each) for each in names], True)
    below = local.find(root, maxdepth=maxdepth, withdirs=True) if recursive else []
    return Expansion(root, [_local_entry(each) for each in sorted({root, *below})])


def _status(path: str) -> os.stat_result | None:
    with suppress(OSError, ValueError):  # uploading the file raises the error
        return os.stat(path)
    return None


def _is_folder(status: os.stat_result | None) -> bool:
    return status is not None and stat.S_ISDIR(status.st_mode)


def _local_entry(path: str) -> dict[str, Any]:
    return {"name": path, "type": "directory" if os.path.isdir(path) else "unknown"}
