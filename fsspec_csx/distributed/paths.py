"""The paths of sharded checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from torch.distributed.checkpoint.metadata import Metadata

from fsspec_csx.formats.dcp.folder import Folder
from fsspec_csx.storage.files import resolve_path
from fsspec_csx.storage.paths import checkpoint_path, redacted

Path: TypeAlias = "str | os.PathLike[str]"


def folder_at(path: Path, options: Mapping[str, Any] | None) -> Folder:
    """Find the folder of a checkpoint.

    Raises:
        CheckpointPathError: if the path cannot name one.
    """
    given = os.fspath(path)
    text = checkpoint_path(given.rstrip("/") or given)
    fs, inner = resolve_path(path if isinstance(path, os.PathLike) else text, text, options)
    return Folder(fs, inner, redacted(text))


def is_path(path: Path) -> bool:
    """Whether a path can name a checkpoint."""
    try:
        checkpoint_path(path)
    except (TypeError, ValueError):
        return False
    return True


def shards_of(metadata: Metadata) -> set[str]:
    """The names of the shards in a manifest."""
    return {place.relative_path for place in metadata.storage_data.values()}
