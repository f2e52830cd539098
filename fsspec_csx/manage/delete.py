"""Deletes exactly the given checkpoints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec_csx.errors import CheckpointPathError, DeleteError
from fsspec_csx.formats.folder_layout import FolderLayout, OwnFiles
from fsspec_csx.formats.registry import manifests
from fsspec_csx.manage import contents, s3
from fsspec_csx.manage.directory import Directory, explain_missing, missing, strip_slashes
from fsspec_csx.manage.list import ListedCheckpoint
from fsspec_csx.manage.location import refuse_index
from fsspec_csx.storage.paths import checkpoint_path, redacted
from fsspec_csx.storage.threads import map_parallel


@dataclass(frozen=True)
class DeleteTarget:
    """A checkpoint to delete."""

    path: str  # the given path
    root: Directory  # its folder, or the file itself
    files: Sequence[str]  # the names of all files in the folder; one empty name for a single file
    manifests: Sequence[str]  # the names of those to delete first: without a manifest it is not a checkpoint
    size: int  # the size of all files, in bytes
    is_folder: bool
    # The layout of a format whose manifest lists the files; None for other formats. That manifest is marked as
    # unfinished at first and deleted last, as only it identifies the other files.
    layout: FolderLayout | None = None
    # Names of files in folders below that stay, as a damaged manifest does not say whose they are; and their
    # description as part of a sentence.
    left: Sequence[str] = ()
    note: str = ""

    def phases(self, *, marked: bool) -> list[list[str]]:
        """Return the paths of the files in the order of deletion; a manifest that was marked comes last.

        Shards come late, as they identify the folder after its manifests are gone.
        """
        listing = [self.layout.manifest] if self.layout else []
        first = [*self.manifests, *(() if marked else listing)]
        apart = {*first, *listing}
        late = {file for file in self.files if contents.is_shard(file.rpartition("/")[2])} or {*self.files}
        others = [file for file in self.files if file not in apart and file not in late]
        parts = [file for file in self.files if file not in apart and file in late]
        return [[*map(self.root.at, names)] for names in (first, others, parts, listing if marked else [])]


def targets(
    paths: Iterable[str | os.PathLike[str]], *, storage_options: Mapping[str, Any] | None = None
) -> list[DeleteTarget]:
    """Find the files of these checkpoints; nothing is deleted yet.

    A file may have any name. A folder must have a manifest, or only shards whose manifest is gone; otherwise it is an
    IsADirectoryError. Folders in it are not part of the checkpoint, except objects that Cerebras metadata names. A path
    that names a bucket, or a version of an object, is a CheckpointPathError.
    """
    places = [(os.fspath(path), _place(path, storage_options)) for path in paths]
    filesystems = [*{id(root.fs): root.fs for _, root in places}.values()]
    parallel = filesystems[0] if len(filesystems) == 1 else None
    found = map_parallel(parallel, lambda place: _target(*place), places)
    # Two paths may be of one checkpoint. On S3 an object and a folder may have one name.
    return [*{(id(each.root.fs), each.root.path, each.is_folder): each for each in found}.values()]


def delete(to_delete: Iterable[DeleteTarget]) -> dict[str, Exception]:
    """Delete checkpoints: all manifests first, shards last. After a failure the same call deletes the rest.

    Returns the errors by path, for checkpoints that are not completely deleted.
    """
    to_delete = [*to_delete]
    failed: dict[str, Exception] = {}
    for fs in {id(each.root.fs): each.root.fs for each in to_delete}.values():
        failed |= _delete(fs, [each for each in to_delete if each.root.fs is fs])
    return failed


def remove(fs: Any, files: Sequence[str]) -> dict[str, Exception]:
    """Delete files by their exact names, in parallel, and return the errors by file; missing files are no error."""
    left = s3.remove_batches(fs, files) if s3.is_s3(fs) else dict.fromkeys(files)

    def remove_one(file: str) -> Exception | None:
        if left[file]:
            return left[file]
        try:
            os.unlink(file) if fs is None else fs.rm_file(file)
        except FileNotFoundError:
            pass  # another program deleted it
        except Exception as error:
            return error
        return None

    failures = zip(left, map_parallel(fs, remove_one, left), strict=True)
    return {file: error for file, error in failures if error is not None}


def targets_from_listing(
    listed: Iterable[ListedCheckpoint], *, storage_options: Mapping[str, Any] | None = None
) -> tuple[list[DeleteTarget], dict[str, Exception]]:
    """Like ``targets`` for listed checkpoints that still exist, without a new lookup of files; also return errors."""
    failed: dict[str, Exception] = {}
    places = []
    for each in listed:
        try:
            places.append((each, _place(each.path, storage_options)))
        except CheckpointPathError as error:
            failed[each.path] = error

    def target(place: tuple[ListedCheckpoint, Directory]) -> list[DeleteTarget]:
        each, root = place
        try:
            return [_folder(each.path, root) if each.sharded else _file(each.path, root, each.size)]
        except FileNotFoundError:
            pass  # another program deleted it
        except OSError as error:
            failed[each.path] = error
        return []

    found = map_parallel(places[0][1].fs if places else None, target, places)
    return [each for those in found for each in those], failed


def _delete(fs: Any, to_delete: Sequence[DeleteTarget]) -> dict[str, Exception]:
    # By number, as on S3 an object and a folder may have one path.
    failed: dict[int, Exception] = {}
    touched: set[int] = set()
    phases: dict[int, list[list[str]]] = {}
    former: dict[int, bytes] = {}
    for number, was in enumerate(map_parallel(fs, _mark_unfinished, to_delete)):
        if isinstance(was, Exception) and not isinstance(was, PermissionError):
            failed[number] = was
            continue
        # Some users may delete, but not write.
        phases[number] = to_delete[number].phases(marked=not isinstance(was, PermissionError))
        former |= {number: was} if isinstance(was, bytes) else {}
    for phase in range(4):
        going = {number: those[phase] for number, those in phases.items() if number not in failed}
        left = remove(fs, [file for those in going.values() for file in those])
        for number, those in going.items():
            errors = [left[file] for file in those if file in left]
            if len(errors) < len(those):
                touched.add(number)
            if errors:
                failed[number] = errors[0]
    for number, each in enumerate(to_delete):
        if number not in failed:
            if each.is_folder:
                remove_empty(fs, each.root.path)
            if each.left:
                reason = f"{redacted(each.path)} was deleted, but {each.note}. They are left."
                remedy = "Look at them, and delete those that nobody needs, such as by fsspec's rm_file."
                failed[number] = DeleteError(reason, remedy)
        elif each.layout and number in former and number not in touched:
            try:  # nothing was deleted, so the checkpoint is complete
                each.layout.restore(each.root, former[number])
            except Exception as error:
                failed[number] = error
    return {to_delete[number].path: error for number, error in failed.items()}


def _mark_unfinished(to_delete: DeleteTarget) -> bytes | Exception | None:
    """Mark a checkpoint as unfinished if its manifest lists its files; return the former manifest, or the error."""
    if to_delete.layout is None:
        return None
    try:
        return to_delete.layout.mark_unfinished(to_delete.root, to_delete.files)
    except Exception as error:
        return error


def _place(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> Directory:
    """Return the directory of a path; call it before threads start, as some releases of fsspec cache by thread."""
    text = checkpoint_path(strip_slashes(path))
    root = Directory(path, storage_options)
    if getattr(root.fs, "version_aware", False) and root.fs.split_path(root.path)[2]:
        raise CheckpointPathError(f"{redacted(text)!r} names one version of an object.", "Remove ?versionId=.")
    return root


def _target(path: str, root: Directory) -> DeleteTarget:
    size = None if path.endswith("/") else _size_of_file(path, root)
    if size is not None:
        refuse_index(path)
    return _folder(path, root) if size is None else _file(path, root, size)


def _file(path: str, root: Directory, size: int) -> DeleteTarget:
    return DeleteTarget(path, root, [""], [], size, False)


def _folder(path: str, root: Directory) -> DeleteTarget:
    held, folders = root.scan()
    if not held and not folders and s3.is_s3(root.fs):  # some servers list folders whose objects are gone
        raise missing("checkpoint", path)
    names = [file.name for file in held]
    held += contents.shards_in(root, folders)
    if not contents.is_checkpoint_folder(names) and not (held and all(map(contents.is_shard, names))):
        msg = f"{redacted(path)} is a folder, but not a checkpoint. Name the checkpoints in it."
        raise IsADirectoryError(msg)
    first, own = manifests(names), OwnFiles([], [])
    layout = contents.listing_layout(names)
    if layout:
        first = []  # other manifests belong to files and checkpoints that stay
        below = root.files()
        own = layout.own_files(root, below)
        held = [below[name] for name in own.names]
    size = sum(file.size or 0 for file in held)
    return DeleteTarget(path, root, [file.name for file in held], first, size, True, layout, own.unclear, own.note)


def _size_of_file(path: str, root: Directory) -> int | None:
    """Return the size in bytes; None for a folder."""
    with explain_missing("checkpoint", path):
        if root.fs is None:
            is_folder = os.path.isdir(root.path) and not os.path.islink(root.path)
            return None if is_folder else os.lstat(root.path).st_size
        info = root.fs.info(root.path)
    return None if info["type"] == "directory" else info.get("size") or 0


def remove_empty(fs: Any, folder: str) -> None:
    """Remove a folder if it is empty now; S3 has no empty folders."""
    if s3.is_s3(fs):
        return
    try:
        for name in os.listdir(folder) if fs is None else ():
            if contents.is_shard_folder(name):
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(os.path.join(folder, name))
        os.rmdir(folder) if fs is None else fs.rmdir(folder)
    except Exception:
        return
