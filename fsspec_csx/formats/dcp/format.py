"""The format of torch.distributed.checkpoint: folders of shards and a manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any

from fsspec.callbacks import Callback

from fsspec_csx.formats.base import ON_CPU, Converted, ConvertOptions, Format, ReadOptions
from fsspec_csx.formats.checkpoint_info import CheckpointInfo
from fsspec_csx.formats.dcp import verify
from fsspec_csx.formats.dcp.folder import ShardedFolder
from fsspec_csx.formats.dcp.source import ShardedSource
from fsspec_csx.formats.verify_report import Report, Sum
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage import folder as storage_folder
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.names import Keys
from fsspec_csx.tensors.source import Source


class DistributedFormat(Format[ShardedSource]):
    """Folders of shards."""

    name = "distributed"
    flattened = True

    def open_folder(
        self, folder: storage_folder.Folder, names: Callable[[], Collection[str]]
    ) -> contextlib.AbstractContextManager[Source | None]:
        """Open the folder. The registry has already found the manifest."""
        return contextlib.closing(ShardedSource(ShardedFolder(folder.fs, folder.path, folder.name)))

    def structure(self, source: ShardedSource, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        """Read the structure to the CPU."""
        return source.structure(weights_only=options.weights_only, partial=options.partial)

    def load(self, source: ShardedSource, keys: Keys | None, options: ReadOptions) -> Any:
        """Read the parts of tensors directly into their memory."""
        return source.state.read(
            keys=keys,
            map_location=options.map_location,
            weights_only=options.weights_only,
            advance=source.advance,
        )

    def info(self, source: ShardedSource, name: str) -> CheckpointInfo:
        return source.state.describe()

    def examine(self, source: ShardedSource, name: str, compute: Sum) -> Report:
        return verify.examine(source)

    def convert(self, source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
        self.refuse_cast(options)
        # A dynamic import: formats must not import distributed (see fsspec_csx/README.md).
        write = import_module("fsspec_csx.distributed.consolidate").write_sharded
        written: Converted = write(source, options, target, progress)
        return written


FORMAT = DistributedFormat()
