"""Finds and deletes leftovers of killed processes."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.registry import layouts
from fsspec_csx.manage import contents, s3
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage.directory import Directory, File
from fsspec_csx.s3.upload_journal import all_journals
from fsspec_csx.storage.atomic import is_temporary
from fsspec_csx.storage.files import is_csx

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Leftover:
    """A leftover of an unfinished save, copy or deletion."""

    # ``upload``, an unfinished multipart upload; ``file``, a temporary file; ``shards``, shards that no manifest or
    # index names; ``state``, the local journal of an upload.
    kind: str
    path: str  # the path of the file or folder, or of the object that the upload would create
    size: int | None  # in bytes (of an upload, the size of its parts so far); None if unknown
    modified: datetime  # the time of the last write
    upload_id: str | None  # the id of an upload; otherwise None
    fs: Any = field(repr=False)  # the filesystem; None for the local one
    contents: Sequence[str] | s3.UnfinishedUpload = field(repr=False)  # the paths of its files, or the upload


def leftovers(
    root: str | os.PathLike[str], *, older_than: timedelta = DAY, storage_options: Mapping[str, Any] | None = None
) -> list[Leftover]:
    """Find leftovers of killed processes under a root, at any depth; younger files may be in use.

    Leftovers are unfinished uploads on S3 and their local journals, temporary files, folders with only shards, and
    shards that the manifest or index of their folder does not name. On S3, only shards with this package's names count.
    """
    place = Directory(root, storage_options)
    uploads = _uploads(place) if s3.is_s3(place.fs) else ()
    found = [*uploads, *_files(place), *_journals(place)]
    limit = datetime.now(timezone.utc) - older_than
    return [each for each in found if each.modified <= limit]


def clear(found: Iterable[Leftover]) -> dict[str, Exception]:
    """Delete leftovers, and return the errors by path."""
    failed: dict[str, Exception] = {}
    for each in found:
        if isinstance(each.contents, s3.UnfinishedUpload):
            try:
                each.fs.abort_mpu(each.contents.bucket, each.contents.key, each.contents.id)
            except FileNotFoundError:
                pass  # it has ended
            except Exception as error:
                failed[each.path] = error
            continue
        left = manage_delete.remove(each.fs, each.contents)
        if left:
            failed[each.path] = next(iter(left.values()))
        elif each.kind == "shards":
            manage_delete.remove_empty(each.fs, os.path.dirname(each.contents[0]))
    return failed


def _uploads(root: Directory) -> Iterator[Leftover]:
    # The root may be a folder above the key, or the key itself.
    top = root.path
    for each in s3.unfinished_uploads(root.fs, top):
        name = f"{each.bucket}/{each.key}"[len(top) :].removeprefix("/")
        path = root.path_of(name) if name else root.text
        yield Leftover("upload", path, each.size, each.modified, each.id, root.fs, each)


def _files(root: Directory) -> Iterator[Leftover]:
    shared = s3.is_s3(root.fs)  # other programs write there, so only this package's names count
    try:
        tree = root.tree()
    except (FileNotFoundError, NotADirectoryError):
        if not shared:
            raise
        return  # the root has only uploads, or is the object of one
    spread = _shard_folders(tree)
    shards: dict[str, list[File]] = defaultdict(list)
    for below, above in spread.items():
        shards[above] += tree[below]
    for folder, files in sorted(tree.items()):
        temporary = [file for file in files if is_temporary(file.base)]
        for file in temporary:
            yield from _leftover("file", root, file.name, [file])
        if folder in spread:
            continue  # its shards count as shards of the checkpoint
        others = [file for file in files if file not in temporary]
        if folder and others and all(contents.is_leftover(file.base, shared=shared) for file in others):
            if not contents.has_lost_manifest(root, folder):
                yield from _leftover("shards", root, folder.rstrip("/"), others)
            continue
        others += shards[folder]
        unnamed = _unnamed(root, folder, [file.name[len(folder) :] for file in others])
        if orphans := [file for file in others if file.name[len(folder) :] in unnamed]:
            yield from _leftover("shards", root, folder.rstrip("/"), orphans)


def _shard_folders(tree: Mapping[str, Sequence[File]]) -> dict[str, str]:
    """Return the folders with shards of a checkpoint in the folder above them, each with the latter."""
    found = {}
    for folder in tree:
        above, _, last = folder.rstrip("/").rpartition("/")
        above = f"{above}/" if above else ""
        for layout in layouts():
            if layout.is_shard_folder(last) and layout.is_checkpoint([file.base for file in tree.get(above, ())]):
                found[folder] = above
    return found


def _unnamed(root: Directory, folder: str, names: Sequence[str]) -> set[str]:
    """Return the shards in a folder that no manifest names; none of a format if a manifest of it is unreadable."""
    found: set[str] = set()
    for layout in layouts():
        with contextlib.suppress(CheckpointError, FileNotFoundError, PermissionError):
            found |= layout.unnamed(root.below(folder.rstrip("/")), names)
    return found


def _leftover(kind: str, root: Directory, name: str, files: Sequence[File]) -> Iterator[Leftover]:
    times = [file.modified for file in files if file.modified]
    if len(times) < len(files):
        return  # the age is unknown, so it may be in use
    size = sum(file.size or 0 for file in files)
    paths = [root.at(file.name) for file in files]
    yield Leftover(kind, root.path_of(name) if name else root.text, size, max(times), None, root.fs, paths)


def _journals(root: Directory) -> Iterator[Leftover]:
    """Yield the local journals of interrupted uploads to paths below the root."""
    if not is_csx(root.fs):
        return
    root.fs.connect()
    top = f"{root.fs._endpoint} {root.path.rstrip('/')}"
    for path, target in all_journals():
        if target == top or target.startswith(f"{top}/"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                modified = datetime.fromtimestamp(status.st_mtime, timezone.utc)
                yield Leftover("state", str(path), status.st_size, modified, None, None, [str(path)])
