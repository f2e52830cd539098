"""Checks that a checkpoint has all files that its manifest, index or shard names require."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats.registry import layouts
from fsspec_csx.manage import naming
from fsspec_csx.manage.directory import Directory


def check_complete(path: str, storage_options: Mapping[str, Any] | None = None) -> None:
    """Raise an InvalidCheckpointError unless a checkpoint folder has all its files; they are not read.

    It compares names with the manifest or index, and for torch.distributed.checkpoint also sizes. It compares the size
    of a lone ``model.safetensors`` with the header. The metadata of a Cerebras checkpoint must be complete.
    """
    root = Directory(path, storage_options)
    sizes = {file.name: file.size for file in root.scan()[0]}
    folder = root.as_folder()
    for layout in layouts():
        layout.check_complete(folder, sizes, lambda: {name: file.size for name, file in root.files().items()})
    listing = naming.listing_layout(sizes)
    if listing and not listing.is_finished(folder):
        raise InvalidCheckpointError(f"{folder.name} was not finished.", "Save it again, or delete it.")
