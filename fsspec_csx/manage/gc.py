"""Finds and deletes leftovers of killed processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.dcp.folder import MANIFEST, SHARD
from fsspec_csx.formats.huggingface import names as huggingface
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage import naming, s3
from fsspec_csx.manage.completeness import shards_of_index
from fsspec_csx.manage.directory import Directory, File
from fsspec_csx.s3.upload_journal import all_journals

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
    found = [*uploads, *_files(place, storage_options), *_journals(place)]
    limit = datetime.now(timezone.utc) - older_than
    return [each for each in found if each.modified <= limit]


def clear(found: Iterable[Leftover]) -> dict[str, Exception]:
    """Delete leftovers, and return the errors by path."""
    failed: dict[str, Exception] = {}
    for each in found:
        if isinstance(each.contents, s3.UnfinishedUpload):
            try:
                s3.abort(each.fs, each.contents)
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
    top = root.inner()
    for each in s3.unfinished_uploads(root.fs, top):
        name = f"{each.bucket}/{each.key}"[len(top) :].removeprefix("/")
        path = root.path_of(name) if name else root.path
        yield Leftover("upload", path, each.size, each.modified, each.id, root.fs, each)


def _files(root: Directory, options: Mapping[str, Any] | None) -> Iterator[Leftover]:
    shared = s3.is_s3(root.fs)  # other programs write there, so only this package's names count
    try:
        tree = root.tree()
    except (FileNotFoundError, NotADirectoryError):
        if not shared:
            raise
        return  # the root has only uploads, or is the object of one
    below: dict[str, list[File]] = {}
    for folder, files in tree.items():
        if (above := naming.checkpoint_of(folder)) is not None:
            below.setdefault(above, []).extend(files)
    complete = {folder for folder, files in tree.items() if any(file.base == MANIFEST for file in files)}
    for folder, files in sorted(tree.items()):
        temporary = [file for file in files if naming.is_temporary(file.base)]
        for file in temporary:
            yield from _leftover("file", root, file.name, [file])
        if naming.checkpoint_of(folder) in complete:
            continue  # its shards count as shards of the checkpoint
        if folder in complete:
            files = [*files, *(file for file in below.get(folder, ()) if SHARD.fullmatch(file.base))]
        others = [file for file in files if file not in temporary]
        names = [file.base for file in others]
        if folder and names and all(_is_shard(name) or (name.endswith(".distcp") and not shared) for name in names):
            yield from _leftover("shards", root, folder.rstrip("/"), others)
            continue
        unnamed: set[str] = set()
        if MANIFEST in names and any(map(SHARD.fullmatch, names)):
            unnamed |= _unnamed(root.path_of(folder.rstrip("/")) if folder else root.path, options)
        if any(map(huggingface.is_index, names)):
            unnamed |= _not_in_index(root, folder, names)
        if orphans := [file for file in others if file.name[len(folder) :] in unnamed]:
            yield from _leftover("shards", root, folder.rstrip("/"), orphans)


def _is_shard(name: str) -> bool:
    return bool(SHARD.fullmatch(name) or huggingface.SHARD.fullmatch(name))


def _not_in_index(root: Directory, folder: str, names: Sequence[str]) -> set[str]:
    """Return this package's shards in a folder that no Hugging Face index names; none if an index is unreadable."""
    shards = {name for name in names if huggingface.SHARD.fullmatch(name)}
    for name in filter(huggingface.is_index, names if shards else ()):
        try:
            shards -= shards_of_index(root, folder + name)
        except (CheckpointError, FileNotFoundError, PermissionError):
            return set()
    return shards


def _unnamed(path: str, options: Mapping[str, Any] | None) -> set[str]:
    """Return the shards in a folder that its manifest does not name; none if the manifest is unreadable."""
    from fsspec_csx import distributed  # only here, as it imports torch.distributed

    try:
        return {*distributed.leftovers(path, storage_options=options)}
    except (CheckpointError, FileNotFoundError, PermissionError):
        return set()


def _leftover(kind: str, root: Directory, name: str, files: Sequence[File]) -> Iterator[Leftover]:
    times = [file.modified for file in files if file.modified]
    if len(times) < len(files):
        return  # the age is unknown, so it may be in use
    size = sum(file.size or 0 for file in files)
    contents = [root.inner(file.name) for file in files]
    yield Leftover(kind, root.path_of(name) if name else root.path, size, max(times), None, root.fs, contents)


def _journals(root: Directory) -> Iterator[Leftover]:
    """Yield the local journals of interrupted uploads to paths below the root."""
    if not hasattr(root.fs, "take_file"):
        return
    root.fs.connect()
    top = f"{root.fs._endpoint} {root.inner().rstrip('/')}"
    for path, target in all_journals():
        if target == top or target.startswith(f"{top}/"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                modified = datetime.fromtimestamp(status.st_mtime, timezone.utc)
                yield Leftover("state", str(path), status.st_size, modified, None, None, [str(path)])
