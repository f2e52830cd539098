"""Opens a checkpoint to be read: a file, or a folder of one of the kinds that are checkpoints."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import IO

from fsspec import AbstractFileSystem

from fsspec_csx.errors import CredentialsError, InvalidCheckpointError
from fsspec_csx.formats import registry, sniff
from fsspec_csx.formats.dcp.folder import has_shards
from fsspec_csx.storage.folder import Folder
from fsspec_csx.tensors.source import Source


@contextlib.contextmanager
def source(
    open_file: Callable[[], IO[bytes]], fs: AbstractFileSystem | None, path: str, *, name: str
) -> Iterator[Source]:
    """The bytes of a checkpoint, while the block lasts.

    Args:
        open_file: opens the file of the path.
        fs: the filesystem; None for the local one.
        path: the path on it.
        name: what errors call the checkpoint.

    Raises:
        CheckpointError: if it is a folder of a known format, but invalid.
        OSError: raised by the filesystem.
    """
    missing: OSError | None = None
    try:
        file = open_file()
    except CredentialsError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        missing = error  # S3 also answers 403 for an object that does not exist, to who may not list the bucket
    try:
        if missing is None:
            with file, _file(file, fs, path, name) as found:
                yield found
        else:
            with _folder(fs, path, name, missing) as found:
                yield found
    finally:
        missing = None  # its traceback leads here


@contextlib.contextmanager
def _file(file: IO[bytes], fs: AbstractFileSystem | None, path: str, name: str) -> Iterator[Source]:
    """A file, which may belong to a checkpoint of many files."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    found = Source(file, size)
    (head,) = found.bytes_of([(0, min(size, sniff.HEAD))])
    parent, _, base = path.rpartition("/")
    for each in registry.of_parts():
        other = each.open_file(found, head, Folder(fs, parent, name), base)
        if other is not None:
            with contextlib.closing(other):
                yield other
            return
    yield found


@contextlib.contextmanager
def _folder(fs: AbstractFileSystem | None, path: str, name: str, missing: OSError) -> Iterator[Source]:
    """The checkpoint in a folder; raises ``missing`` if there is none."""
    folder = Folder(fs, path, name)
    names = functools.cache(lambda: _names(folder))
    for each in registry.folders(folder.exists):
        with each.open_folder(folder, names) as found:
            if found is not None:
                yield found
                return
        if isinstance(missing, PermissionError):  # the other formats need the right to list
            raise missing
    if has_shards(names()):
        reason = f"{name} has shards and no manifest: a save was not finished, or a deletion."
        raise InvalidCheckpointError(reason, "Save it again, or delete it.")
    raise missing


def _names(folder: Folder) -> list[str]:
    """The names of what is in a folder; none if it cannot be listed."""
    try:
        return folder.names()
    except OSError:
        return []
