"""TreesS3: objects, folders, patterns and lists of paths copied, moved, fetched, sent and read at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from fsspec.asyn import _run_coros_in_chunks
from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.implementations.local import LocalFileSystem, make_path_posix, trailing_sep
from fsspec.utils import is_exception

from fsspec_csx.s3.interrupt import interruptible
from fsspec_csx.s3.listing import check_depth
from fsspec_csx.s3.move import is_folder, move
from fsspec_csx.s3.names import Expansion, is_pattern, nothing_at, path_of
from fsspec_csx.s3.object_reads import ObjectsS3
from fsspec_csx.s3.targets import PathPair, check_distinct, check_inside, check_local, pair_paths, zip_paths
from fsspec_csx.s3.transport.call_scope import contained
from fsspec_csx.s3.versions import writable


class TreesS3(ObjectsS3):
    """What is done to many objects at a time; the base of CSXFileSystem, of no use alone.

    A path is a name before it is a pattern, and all targets are known and checked before anything is written. As
    everywhere in fsspec, a folder is passed over unless ``recursive``.
    """

    async def _copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        on_error: str | None = None,
        maxdepth: int | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Copy objects, by the server; as ``fsspec.asyn.AsyncFileSystem.copy``.

        Args:
            path1: a name, a pattern, or a list of them.
            path2: the name of the copy, the folder that the copies go into, or a list of names.
            recursive: whether to copy what lies below folders too.
            on_error: "ignore" passes over objects that are missing, as ``recursive`` does; "raise" raises.
            maxdepth: levels of folders, at most.

        Raises:
            FileNotFoundError: if there is nothing of the name, or nothing that matches.
            ValueError: before anything is copied, if a target names a version, or two sources have one target.
        """
        pairs = await self._pairs(path1, path2, recursive, maxdepth)
        check_distinct(pairs)
        calls = [self._unless_folder(self._cp_file, each, **kwargs) for each in pairs if each.type != "directory"]
        size = batch_size or self.batch_size
        results = await _run_coros_in_chunks(calls, batch_size=size, return_exceptions=True, nofiles=True)
        ignored = FileNotFoundError if (on_error or ("ignore" if recursive else "raise")) == "ignore" else ()
        for error in filter(is_exception, results):
            if not isinstance(error, ignored):
                raise error

    @contained
    async def _mv(
        self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any
    ) -> None:
        """Move objects, by the server: copy all, compare each copy with its source, and then delete the sources.

        Args:
            path1: a name, a pattern, or a list of them.
            path2: the new name, the folder that they go into, or a list of names.
            recursive: whether to move what lies below folders too.
            maxdepth: levels of folders, at most.

        Raises:
            FileNotFoundError: if there is nothing of the name, or nothing that matches.
            IsADirectoryError: if it is a folder, unless ``recursive``.
            ChecksumError: if a copy is not what its source is. Then no source is deleted.
            ValueError: before anything is copied, if a target names a version, or two sources have one target.
        """
        pairs = await self._pairs(path1, path2, recursive, maxdepth)
        if not pairs:
            raise is_folder(path1)
        await move(self, pairs, **kwargs)

    async def _mv_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        await move(self, await self._pairs([path1], [path2], False, None), **kwargs)

    async def _pairs(self, path1: Any, path2: Any, recursive: bool, maxdepth: int | None) -> list[PathPair]:
        """The objects and folders that are to be copied, and where to."""
        if isinstance(path1, (list, tuple)) and isinstance(path2, (list, tuple)):
            pairs = zip_paths([self._plain(each) for each in path1], [self._plain(each) for each in path2])
        else:
            writable(self, path2)
            found = await self._sources(path1, recursive, maxdepth, markers=True)
            is_list = not isinstance(path1, str)
            into = not is_list and not found[0].is_match and await self._goes_into(path1, path2)
            pairs = pair_paths(found, self._strip_protocol(path2), is_list=is_list, into=into)
        for each in pairs:
            writable(self, each.target)
        return pairs

    def _plain(self, path: str) -> str:
        bucket, key, version = self.split_path(path)
        return f"{bucket}/{key}" + (f"?versionId={version}" if version else "")

    async def _sources(self, path: Any, recursive: bool, maxdepth: int | None, **kwargs: Any) -> list[Expansion]:
        check_depth(maxdepth)
        paths = [path] if isinstance(path, str) else list(path)
        found = [await self._expand(each, recursive, maxdepth, **kwargs) for each in paths]
        if not any(each.entries for each in found):
            raise nothing_at(path)
        return found if recursive and maxdepth is None else [each.without_folders() for each in found]

    async def _goes_into(self, source: str, target: str) -> bool:
        """Whether the target is a folder, so that what the source names goes into it."""
        return not trailing_sep(source) and (trailing_sep(target) or await self._isdir(target))

    async def _unless_folder(self, call: Callable[..., Coroutine[Any, Any, Any]], pair: PathPair, **kwargs: Any) -> Any:
        """Do something to an object, but nothing to a folder, which fsspec passes over."""
        try:
            return await call(pair.source, pair.target, **kwargs)
        except FileNotFoundError:
            if pair.type != "unknown" or not await self._isdir(pair.source):
                raise

    # -- from S3 to local files, and to memory ----------------------------------------------------------------------

    async def _get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,
        callback: Callback = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make objects local files; as ``fsspec.asyn.AsyncFileSystem.get``.

        Args:
            rpath: a name, a pattern, or a list of them.
            lpath: the local name, the folder that the files go into, or a list of names.
            recursive: whether to fetch what lies below folders too.
            maxdepth: levels of folders, at most.

        Raises:
            FileNotFoundError: if there is nothing of the name, or nothing that matches.
            IsADirectoryError: before anything is fetched, if an object has the name of a folder too.
            ValueError: before anything is fetched, if a key that was found leads out of the folder, or two objects
                would become one file.
        """
        if isinstance(rpath, (list, tuple)) and isinstance(lpath, (list, tuple)):
            pairs = zip_paths(rpath, [str(each) for each in lpath])
        else:
            target = make_path_posix(lpath)
            found = await self._sources(rpath, recursive, maxdepth)
            exists = trailing_sep(lpath) or os.path.isdir(target)
            is_list = not isinstance(rpath, str)
            into = not is_list and not found[0].is_match and exists and not trailing_sep(rpath)
            pairs = pair_paths(found, target, is_list=is_list, into=into)
            check_inside(pairs, target)
        check_local(pairs)
        for pair in pairs:
            os.makedirs(pair.target if pair.type == "directory" else os.path.dirname(pair.target) or ".", exist_ok=True)
        files = [each for each in pairs if each.type != "directory"]
        size = kwargs.pop("batch_size", self.batch_size)
        callback.set_size(len(files))
        get_file = callback.branch_coro(self._get_file)
        calls = [self._unless_folder(get_file, each, **kwargs) for each in files]
        return await _run_coros_in_chunks(calls, batch_size=size, callback=callback)

    async def _cat(
        self, path: Any, recursive: bool = False, on_error: str = "raise", batch_size: int | None = None, **kwargs: Any
    ) -> Any:
        """The bytes of an object; or those of many, by name, if a list or a pattern is given.

        Args:
            path: a name, a pattern, or a list of them.
            recursive: whether to read what lies below folders too.
            on_error: "raise"; "return" puts exceptions in the place of bytes, and "omit" leaves out what failed.
        """
        found = await self._sources(path, recursive, None)
        names = list(dict.fromkeys(path_of(entry) for each in found for entry in each.files))
        if not names:
            raise nothing_at(path)
        calls = [self._cat_file(each, **kwargs) for each in names]
        size = batch_size or self.batch_size
        read = await _run_coros_in_chunks(calls, batch_size=size, return_exceptions=True, nofiles=True)
        if on_error == "raise":
            for error in filter(is_exception, read):
                raise error
        if (
            isinstance(path, str)
            and not found[0].is_match
            and [each["name"] for each in found[0].files] == [found[0].root]
        ):
            return read[0]
        pairs = zip(names, read, strict=True)
        return {name: data for name, data in pairs if on_error != "omit" or not is_exception(data)}

    # -- from local files, and memory, to S3 ------------------------------------------------------------------------

    async def _put(
        self,
        lpath: Any,
        rpath: Any,
        recursive: bool = False,
        callback: Callback = DEFAULT_CALLBACK,
        batch_size: int | None = None,
        maxdepth: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make local files objects; as ``fsspec.asyn.AsyncFileSystem.put``.

        Args:
            lpath: a name, a pattern, or a list of them.
            rpath: the name of the object, the folder that the objects go into, or a list of names.
            recursive: whether to send what lies below folders too.
            maxdepth: levels of folders, at most.

        Raises:
            FileNotFoundError: if there is nothing of the name, or nothing that matches.
            ValueError: before anything is sent, if a target names a version, or two files have one target.
        """
        if isinstance(lpath, (list, tuple)) and isinstance(rpath, (list, tuple)):
            pairs = zip_paths([str(each) for each in lpath], rpath)
        else:
            writable(self, rpath)
            is_list = isinstance(lpath, (list, tuple))
            found = [_expand_local(each, recursive, maxdepth) for each in (lpath if is_list else [lpath])]
            if not any(each.entries for each in found):
                raise nothing_at(lpath)
            if not is_list and (not recursive or maxdepth is not None):
                found = [each.without_folders() for each in found]
            into = not is_list and not found[0].is_match and await self._goes_into(os.fspath(lpath), rpath)
            pairs = pair_paths(found, self._strip_protocol(rpath), is_list=is_list, into=into)
        for pair in pairs:
            writable(self, pair.target)
        check_distinct(pairs)
        files = [each for each in pairs if not os.path.isdir(each.source)]
        if pairs and not files:
            await self._makedirs(pairs[0].target, exist_ok=True)
        callback.set_size(len(files))
        put_file = callback.branch_coro(self._put_file)
        calls = [put_file(each.source, each.target, **kwargs) for each in files]
        return await _run_coros_in_chunks(calls, batch_size=batch_size or self.batch_size, callback=callback)

    async def _pipe(self, path: Any, value: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Make bytes objects.

        Args:
            path: a name, or a mapping of names to bytes.
            value: the bytes, if a name is given.

        Raises:
            ValueError: before anything is sent, if one of them names a version.
        """
        contents: Mapping[str, Any] = {path: value} if isinstance(path, str) else path
        for each in contents:
            writable(self, each)
        return await super()._pipe(dict(contents), batch_size=batch_size, **kwargs)

    mv = interruptible(_mv)
    mv_file = interruptible(_mv_file)


def _expand_local(path: str | os.PathLike[str], recursive: bool, maxdepth: int | None) -> Expansion:
    """What a local path stands for; as on S3, a name comes before a pattern."""
    local = LocalFileSystem()
    root = local._strip_protocol(make_path_posix(path))
    if is_pattern(root) and not os.path.lexists(root):
        names: list[str] = []
        with suppress(FileNotFoundError):
            names = local.expand_path(root, recursive=recursive, maxdepth=maxdepth)
        return Expansion(root, [_local_entry(each) for each in names], True)
    below = local.find(root, maxdepth=maxdepth, withdirs=True) if recursive else []
    return Expansion(root, [_local_entry(each) for each in sorted({root, *below})])


def _local_entry(path: str) -> dict[str, Any]:
    return {"name": path, "type": "directory" if os.path.isdir(path) else "unknown"}
