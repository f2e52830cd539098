"""What processes that were killed have left, and its clearance."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.dcp.folder import MANIFEST, SHARD
from fsspec_csx.manage import delete as manage_delete
from fsspec_csx.manage import naming, s3
from fsspec_csx.manage.directory import Directory, File
from fsspec_csx.s3.upload_journal import all_journals

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Leftover:
    """Something of which no checkpoint became.

    Attributes:
        kind: ``upload``, a multipart upload that was neither completed nor aborted; ``file``, a temporary file;
            ``shards``, parts that no manifest names; ``state``, a note on this machine about an upload there.
        path: of the object that the upload would make, or of the file or folder.
        size: in bytes, of an upload that of its parts so far; None if it is not known.
        modified: when it was written to last.
        upload_id: the server's name for an upload; else None.
        fs: the filesystem; None for this machine's own.
        held: the paths there of its files, or the upload.
    """

    kind: str
    path: str
    size: int | None
    modified: datetime
    upload_id: str | None
    fs: Any
    contents: Sequence[str] | s3.UnfinishedUpload


def leftovers(
    root: str | os.PathLike[str], *, older_than: timedelta = DAY, storage_options: Mapping[str, Any] | None = None
) -> list[Leftover]:
    """What was left under a root, however deep, by processes that were killed.

    These are uploads on S3; temporary files; folders in which all files are parts of a checkpoint whose manifest is
    missing, on S3 only parts that this package has named; and such parts in a folder whose manifest does not name them.
    Notes on this machine about uploads to below a root on S3 are among them.

    Args:
        root: a folder, local or an fsspec URL; an S3 URL may name a bucket alone.
        older_than: since when nothing was written to it; what is younger may be under way.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a folder.
        FileNotFoundError: if there is no such folder or bucket.
        OSError: whatever the filesystem raised, as it raised it.
    """
    place = Directory(root, storage_options)
    uploads = _uploads(place) if s3.is_s3(place.fs) else ()
    found = [*uploads, *_files(place, storage_options), *_states(place)]
    limit = datetime.now(timezone.utc) - older_than
    return [each for each in found if each.modified <= limit]


def clear(found: Iterable[Leftover]) -> dict[str, Exception]:
    """Remove what ``leftovers`` found.

    Returns:
        What went wrong, by the paths of those that are left.
    """
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
    # The path of the root may end in the whole key, or in a part of it.
    top = root.inner()
    for each in s3.uploads(root.fs, top):
        name = f"{each.bucket}/{each.key}"[len(top) :].removeprefix("/")
        path = root.path_of(name) if name else root.path
        yield Leftover("upload", path, each.size, each.modified, each.id, root.fs, each)


def _files(root: Directory, options: Mapping[str, Any] | None) -> Iterator[Leftover]:
    shared = s3.is_s3(root.fs)  # with whoever writes to the bucket, so that only our own names count
    try:
        tree = root.tree()
    except (FileNotFoundError, NotADirectoryError):
        if not shared:
            raise
        return  # there are uploads alone, or the root is the object of one
    for folder, files in sorted(tree.items()):
        temporary = [file for file in files if naming.is_temporary(file.base)]
        for file in temporary:
            yield from _leftover("file", root, file.name, [file])
        others = [file for file in files if file not in temporary]
        names = [*(file.base for file in others)]
        if (
            folder
            and names
            and all(SHARD.fullmatch(name) or (name.endswith(".distcp") and not shared) for name in names)
        ):
            yield from _leftover("shards", root, folder.rstrip("/"), others)
        elif MANIFEST in names and any(map(SHARD.fullmatch, names)):
            path = root.path_of(folder.rstrip("/")) if folder else root.path
            unnamed = _unnamed(path, options)
            if orphans := [file for file in others if file.base in unnamed]:
                yield from _leftover("shards", root, folder.rstrip("/"), orphans)


def _unnamed(path: str, options: Mapping[str, Any] | None) -> set[str]:
    """The parts in a folder that its manifest does not name; none if it cannot be read."""
    from fsspec_csx import distributed  # only here, as it imports torch.distributed

    try:
        return {*distributed.leftovers(path, storage_options=options)}
    except (CheckpointError, FileNotFoundError, PermissionError):
        return set()


def _leftover(kind: str, root: Directory, name: str, files: Sequence[File]) -> Iterator[Leftover]:
    times = [file.modified for file in files if file.modified]
    if len(times) < len(files):
        return  # of unknown age, and so perhaps under way
    size = sum(file.size or 0 for file in files)
    contents = [root.inner(file.name) for file in files]
    yield Leftover(kind, root.path_of(name) if name else root.path, size, max(times), None, root.fs, contents)


def _states(root: Directory) -> Iterator[Leftover]:
    """Notes by which an upload to below the root that was interrupted goes on."""
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
