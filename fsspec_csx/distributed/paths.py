"""Paths and folders of sharded checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from fsspec.callbacks import Callback, NoOpCallback
from torch.distributed.checkpoint.metadata import Metadata

from fsspec_csx.formats.dcp.layout import ShardedFolder
from fsspec_csx.storage.files import resolve_path
from fsspec_csx.storage.paths import checkpoint_path, redacted
from fsspec_csx.storage.progress import ProgressMeter

Path: TypeAlias = "str | os.PathLike[str]"


def folder_at(path: Path | ShardedFolder, options: Mapping[str, Any] | None) -> ShardedFolder:
    """Return the folder of a checkpoint; raise a CheckpointPathError if the path cannot name one."""
    if isinstance(path, ShardedFolder):
        return path
    text = checkpoint_path(os.fspath(path).rstrip("/") or path)
    fs, inner = resolve_path(path, text, options)
    return ShardedFolder(fs, inner, redacted(text))


def shards_of(metadata: Metadata) -> set[str]:
    return {place.relative_path for place in metadata.storage_data.values()}


class FolderStorage:
    """The base of the storage reader and writer."""

    def __init__(
        self, path: Path | ShardedFolder, storage_options: Mapping[str, Any] | None, callback: Callback | None
    ) -> None:
        super().__init__()
        self._callback = callback
        self._options = storage_options
        self._folder = folder_at(path, storage_options)

    @property
    def checkpoint_id(self) -> str:
        """The path, without any password."""
        return self._folder.name

    def reset(self, checkpoint_id: Path | None = None) -> None:
        """Start again, at another path if one is given."""
        if checkpoint_id:
            self._folder = folder_at(checkpoint_id, self._options)

    def _meter(self, size: int, *, estimated: bool = False) -> ProgressMeter:
        # Not stored in self: NoOpCallback cannot be pickled.
        return ProgressMeter(self._callback or NoOpCallback(), size, estimated=estimated)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Path) -> bool:
        try:
            checkpoint_path(checkpoint_id)
        except (TypeError, ValueError):
            return False
        return True
