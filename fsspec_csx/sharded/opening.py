"""Opens a checkpoint to be read: a file, or a folder of one of the kinds that are checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import IO

from fsspec import AbstractFileSystem

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import opening
from fsspec_csx.formats.source import Source
from fsspec_csx.sharded.folder import MANIFEST, Folder


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
        CheckpointError: if it is a folder, and not what it should be.
        OSError: what the filesystem raised.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = stack.enter_context(opening.source(open_file, fs, path, name=name))
        except (FileNotFoundError, IsADirectoryError):
            folder = Folder(fs, path, name)
            if not folder.exists(MANIFEST):
                _check_finished(folder)
                raise
            from fsspec_csx.sharded.source import ShardedSource  # only here, as it imports torch.distributed

            found = stack.enter_context(contextlib.closing(ShardedSource(folder)))
        yield found


def _check_finished(folder: Folder) -> None:
    if folder.is_unfinished():
        reason = f"{folder.name} has shards and no manifest: a save was not finished, or a deletion."
        raise InvalidCheckpointError(reason, "Save it again, or delete it.")
