"""Opens a checkpoint to be read: a file, or a folder of one of the kinds that are checkpoints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import IO

import fsspec
from fsspec import AbstractFileSystem

from fsspec_csx.errors import CredentialsError, InvalidCheckpointError
from fsspec_csx.formats import sniff
from fsspec_csx.formats.cerebras import folder as cerebras_folder
from fsspec_csx.formats.cerebras import hdf5 as cerebras_hdf5
from fsspec_csx.formats.dcp.folder import MANIFEST, Folder
from fsspec_csx.tensors.source import Source


@contextlib.contextmanager
def source(
    open_file: Callable[[], IO[bytes]], fs: AbstractFileSystem | None, path: str, *, name: str
) -> Iterator[Source]:
    """The bytes of a checkpoint, while the block lasts.

    Args:
        open_file: opens the file of the path.
        fs: the filesystem; None for this machine's own.
        path: the path on it.
        name: what errors call the checkpoint.

    Raises:
        CheckpointError: if it is a folder or a Cerebras checkpoint, and not what it should be.
        OSError: what the filesystem raised.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(_file(open_file, fs, path, name))
        except (FileNotFoundError, IsADirectoryError):
            folder = Folder(fs, path, name)
            if not folder.exists(MANIFEST):
                _check_finished(folder)
                raise
            from fsspec_csx.formats.dcp.source import ShardedSource  # only here, as it imports torch.distributed

            found = stack.enter_context(contextlib.closing(ShardedSource(folder)))
        yield found


@contextlib.contextmanager
def _file(open_file: Callable[[], IO[bytes]], fs: AbstractFileSystem | None, path: str, name: str) -> Iterator[Source]:
    """A file, or a Cerebras checkpoint where a file of its name would be."""
    missing: OSError | None = None
    try:
        file = open_file()
    except CredentialsError:
        raise
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        missing = error  # S3 also refuses to tell who may not list a bucket that there is no such object
    if missing is not None:
        if fs is None:
            fs, path = fsspec.filesystem("file"), os.path.abspath(path)  # it would take a '~' for someone's home
        try:
            with cerebras_folder.opened(fs, path, name=name) as folder:
                if folder is None:
                    raise missing
                yield folder
        finally:
            missing = None  # its traceback leads here
        return
    with file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        found = Source(file, size)
        (head,) = found.bytes_of([(0, min(size, sniff.HEAD))])
        if not cerebras_hdf5.is_hdf5(head):
            yield found
            return
        with contextlib.closing(cerebras_hdf5.source(found, name)) as hdf5:
            yield hdf5


def _check_finished(folder: Folder) -> None:
    if folder.is_unfinished():
        reason = f"{folder.name} has shards and no manifest: a save was not finished, or a deletion."
        raise InvalidCheckpointError(reason, "Save it again, or delete it.")
