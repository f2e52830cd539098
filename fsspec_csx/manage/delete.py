"""Checkpoints deleted: those, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec_csx.errors import CheckpointPathError, CSXError
from fsspec_csx.manage import cerebras_folders, naming, s3
from fsspec_csx.manage.directory import Directory, map_parallel, strip_slashes
from fsspec_csx.manage.list import ListedCheckpoint
from fsspec_csx.storage.paths import checkpoint_path, redacted


@dataclass(frozen=True)
class DeleteTarget:
    """A checkpoint that is to go.

    Attributes:
        path: as it was given.
        fs: the filesystem; None for this machine's own.
        files: the paths of its files there.
        manifests: those of them that go first, since without them the others are no checkpoint.
        metadata: that of a Cerebras checkpoint, which goes last, as it alone tells what the others are: until then it
            is one that was not finished. None for other checkpoints.
        size: of all, in bytes.
        folder: the path of the folder that it is; None for a single file.
    """

    path: str
    fs: Any
    files: Sequence[str]
    manifests: Sequence[str]
    size: int
    folder: str | None
    metadata: str | None = None

    @property
    def parts(self) -> list[str]:
        """The files that go late: those by which a folder is known when its manifests are gone, if it has such."""
        shards = [file for file in self.files if naming.is_shard(file.rpartition("/")[2])]
        return shards or [file for file in self.files if file not in {*self.manifests, self.metadata}]

    @property
    def others(self) -> list[str]:
        """The files that are neither."""
        apart = {*self.manifests, *self.parts, self.metadata}
        return [file for file in self.files if file not in apart]

    @property
    def key(self) -> tuple[int, str]:
        """What two paths of the same checkpoint have in common."""
        return id(self.fs), self.folder or self.files[0]


def targets(
    paths: Iterable[str | os.PathLike[str]], *, storage_options: Mapping[str, Any] | None = None
) -> list[DeleteTarget]:
    """What the deletion of these checkpoints takes; nothing is deleted yet.

    A file is taken whatever its name. A folder is one checkpoint if it has a manifest, or if all its files are parts of
    one whose manifest is gone; its own folders are none of it, but those of a Cerebras checkpoint are.

    Args:
        paths: local paths or fsspec URLs, as of ``load``.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint: a bucket, or one version of an object.
        FileNotFoundError: if there is nothing at a path.
        IsADirectoryError: if there is a folder that is no checkpoint.
        OSError: whatever the filesystem raised, as it raised it.
    """
    places = [(os.fspath(path), _place(path, storage_options)) for path in paths]
    filesystems = [*{id(root.fs): root.fs for _, root in places}.values()]
    parallel = filesystems[0] if len(filesystems) == 1 else None
    found = map_parallel(parallel, lambda place: _target(*place), places)
    return [*{each.key: each for each in found}.values()]


def delete(to_delete: Iterable[DeleteTarget]) -> dict[str, Exception]:
    """Delete checkpoints: all manifests first, and the parts last, on S3 a thousand by one request.

    What is left of one after a failure, or when the process is killed, is deleted by the same call again.

    Args:
        doomed: what ``targets`` gave.

    Returns:
        What went wrong, by the paths of those that are left, or of which something is left.
    """
    to_delete = [*to_delete]
    failed: dict[str, Exception] = {}
    for fs in {id(each.fs): each.fs for each in to_delete}.values():
        failed |= _delete(fs, [each for each in to_delete if each.fs is fs])
    return failed


def remove(fs: Any, files: Sequence[str]) -> dict[str, Exception]:
    """Delete files by their exact names, and tell what went wrong with those that are left.

    Args:
        fs: the filesystem; None for this machine's own.
        files: their paths there.
    """
    if s3.is_s3(fs):
        return s3.remove(fs, files)

    def remove_one(file: str) -> Exception | None:
        try:
            os.unlink(file) if fs is None else fs.rm_file(file)
        except FileNotFoundError:
            pass  # someone else was quicker
        except Exception as error:
            return error
        return None

    failures = zip(files, map_parallel(fs, remove_one, files), strict=True)
    return {file: error for file, error in failures if error is not None}


def targets_from_listing(
    listed: Iterable[ListedCheckpoint], *, storage_options: Mapping[str, Any] | None = None
) -> tuple[list[DeleteTarget], dict[str, Exception]]:
    """What the deletion of checkpoints in a listing takes; single files are not asked for again.

    Args:
        listed: checkpoints of one root.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Returns:
        Those that are still there; and what went wrong, by the paths of those of which it is not known.
    """
    failed: dict[str, Exception] = {}
    places = []
    for each in listed:
        try:
            places.append((each, _place(each.path, storage_options)))
        except CheckpointPathError as error:
            failed[each.path] = error

    def target(place: tuple[ListedCheckpoint, Directory]) -> DeleteTarget | None:
        each, root = place
        if not each.sharded:
            return _file(each.path, root, each.size)
        try:
            return _folder(each.path, root)
        except FileNotFoundError:
            return None  # someone else was quicker
        except OSError as error:
            failed[each.path] = error
            return None

    found = map_parallel(places[0][1].fs if places else None, target, places)
    return [each for each in found if each is not None], failed


def _delete(fs: Any, to_delete: Sequence[DeleteTarget]) -> dict[str, Exception]:
    """As ``delete``, of one filesystem."""
    failed: dict[str, Exception] = {}
    touched: set[str] = set()
    first = {each.path: [*each.manifests] for each in to_delete}
    last: dict[str, list[str]] = {}
    former: dict[str, bytes] = {}
    for each, was in zip(to_delete, map_parallel(fs, _begin, to_delete), strict=True):
        if isinstance(was, PermissionError) and each.metadata:
            first[each.path].append(each.metadata)  # for those who may delete and not write
        elif isinstance(was, Exception):
            failed[each.path] = was
        elif each.metadata:
            last[each.path] = [each.metadata]
            former |= {} if was is None else {each.path: was}

    def go(files: Mapping[str, Sequence[str]]) -> None:
        going = {path: those for path, those in files.items() if path not in failed}
        left = remove(fs, [file for those in going.values() for file in those])
        touched.update(path for path, those in going.items() if not left.keys() >= {*those})
        wrong = {path: next((left[file] for file in those if file in left), None) for path, those in going.items()}
        failed.update({path: error for path, error in wrong.items() if error is not None})

    others, parts = {each.path: each.others for each in to_delete}, {each.path: each.parts for each in to_delete}
    for files in (first, others, parts, last):
        go(files)
    for each in to_delete:
        if each.path not in failed:
            remove_empty(fs, each.folder)
        elif each.path in former and each.path not in touched:
            try:  # nothing could be deleted, so all is as it was
                cerebras_folders.write(fs, str(each.folder), former[each.path])
            except Exception as error:
                failed[each.path] = error
    return failed


def _begin(to_delete: DeleteTarget) -> bytes | Exception | None:
    """Make a Cerebras checkpoint one that was not finished: the metadata that it had, or what hinders that."""
    if to_delete.folder is None or to_delete.metadata is None:
        return None
    try:
        return cerebras_folders.begin(to_delete.fs, to_delete.folder)
    except Exception as error:
        return error


def _place(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> Directory:
    """What is at a path, as a root. Made before the threads: some releases of fsspec have a filesystem for each."""
    text = checkpoint_path(strip_slashes(path))
    root = Directory(path, storage_options)
    if getattr(root.fs, "version_aware", False) and root.fs.split_path(root.inner())[2]:
        raise CheckpointPathError(f"{redacted(text)!r} names one version of an object.", "Leave ?versionId= away.")
    return root


def _target(path: str, root: Directory) -> DeleteTarget:
    size = None if path.endswith("/") else _size_of_file(path, root.fs, root.inner())
    return _folder(path, root) if size is None else _file(path, root, size)


def _file(path: str, root: Directory, size: int) -> DeleteTarget:
    return DeleteTarget(path, root.fs, [root.inner()], [], size, None)


def _folder(path: str, root: Directory) -> DeleteTarget:
    held, _ = root.scan()
    names = [file.name for file in held]
    if not naming.is_sharded(names) and not (names and all(map(naming.is_shard, names))):
        msg = f"{redacted(path)} is a folder, and no checkpoint. Name the checkpoints in it."
        raise IsADirectoryError(msg)
    manifests = [root.inner(name) for name in names if naming.is_manifest(name) and name != naming.METADATA]
    metadata = None
    if naming.METADATA in names:
        metadata = root.inner(naming.METADATA)
        held = [file for files in root.tree().values() for file in files]
    files = [root.inner(file.name) for file in held]
    return DeleteTarget(path, root.fs, files, manifests, sum(file.size or 0 for file in held), root.inner(), metadata)


def _size_of_file(path: str, fs: Any, inner: str) -> int | None:
    """In bytes; None if there is a folder."""
    try:
        if fs is None:
            return None if os.path.isdir(inner) and not os.path.islink(inner) else os.lstat(inner).st_size
        info = fs.info(inner)
    except FileNotFoundError as error:
        if isinstance(error, CSXError):
            raise
        msg = f"There is no checkpoint {redacted(path)}. Check its name."
        raise FileNotFoundError(msg) from error
    return None if info["type"] == "directory" else info.get("size") or 0


def remove_empty(fs: Any, folder: str | None) -> None:
    """Remove a folder that was a checkpoint, if nothing else is in it; S3 has none."""
    if folder is None or s3.is_s3(fs):
        return
    try:
        os.rmdir(folder) if fs is None else fs.rmdir(folder)
    except Exception:
        return
