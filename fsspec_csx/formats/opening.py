"""Opens a checkpoint for reading: a file, or a folder in one of the folder formats."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from fsspec_csx.errors import CredentialsError, InvalidCheckpointError
from fsspec_csx.formats import registry, sniff
from fsspec_csx.storage.files import open_file, resolve_path, unwrap_filesystem
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.paths import checkpoint_path, redacted
from fsspec_csx.tensors.source import Source

if TYPE_CHECKING:
    from fsspec_csx.group.processes import Processes


@contextlib.contextmanager
def checkpoint(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None, processes: Processes | None = None
) -> Iterator[tuple[Source, str]]:
    """Open the checkpoint at a path; yield its source, and the name for errors.

    The processes of ``processes`` read it once for all of them; if that is None, this process reads it alone.
    """
    text = checkpoint_path(path)
    fs, inner = resolve_path(path, text, storage_options)
    if processes is not None:
        from fsspec_csx.group.filesystem import shared  # only here, as it imports torch.distributed

        fs, inner = shared(fs, inner, processes)
    name = redacted(text)
    with source(lambda: open_file(fs, inner), *unwrap_filesystem(fs, inner)[:2], name=name) as found:
        yield found, name


@contextlib.contextmanager
def source(
    open_it: Callable[[], IO[bytes]], fs: AbstractFileSystem | None, path: str, *, name: str
) -> Iterator[Source]:
    """Open the source of a checkpoint. Raise a CheckpointError for an invalid folder of a known format."""
    missing: OSError | None = None
    try:
        file = open_it()
    except CredentialsError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        missing = error  # S3 also answers 403 for a missing object, to users who may not list the bucket
    try:
        if missing is None:
            with file, _file(file, fs, path, name) as found, _forgotten_if_invalid(file):
                yield found
        else:
            with _folder(fs, path, name, missing) as found:
                yield found
    finally:
        missing = None  # break the cycle through its traceback


@contextlib.contextmanager
def _forgotten_if_invalid(file: IO[bytes]) -> Iterator[None]:
    """Remove an invalid checkpoint from the cache: ranges have no checksum, so it may have been damaged in transfer."""
    try:
        yield
    except InvalidCheckpointError:
        if hasattr(file, "forget_cached"):
            file.forget_cached()
        raise


@contextlib.contextmanager
def _file(file: IO[bytes], fs: AbstractFileSystem | None, path: str, name: str) -> Iterator[Source]:
    """Open a file, which may belong to a checkpoint of many files."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    found = Source(file, size)
    head = found.head(sniff.HEAD)
    parent, _, base = path.rpartition("/")
    for each in registry.multi_file_formats():
        other = each.open_file(found, head, Folder(fs, parent, name), base)
        if other is not None:
            with contextlib.closing(other):
                yield other
            return
    yield found


@contextlib.contextmanager
def _folder(fs: AbstractFileSystem | None, path: str, name: str, missing: OSError) -> Iterator[Source]:
    """Open the checkpoint in a folder; raise ``missing`` if there is none."""
    folder = Folder(fs, path, name)
    names = functools.cache(lambda: _names(folder))
    for each in registry.folders(folder.exists):
        with each.open_folder(folder, names) as found:
            if found is not None:
                yield found
                return
        if isinstance(missing, PermissionError):  # the other formats need the permission to list
            raise missing
    if any(layout.is_unfinished(names()) for layout in registry.layouts()):
        reason = f"{name} has shards but no manifest: a save or a deletion did not finish."
        raise InvalidCheckpointError(reason, "Save it again, or delete it.")
    raise missing


def _names(folder: Folder) -> list[str]:
    """List the names in a folder; none if it cannot be listed."""
    try:
        return folder.names()
    except OSError:
        return []
