"""The format of torch.distributed.checkpoint: folders of shards and a manifest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

from fsspec.callbacks import Callback

from fsspec_csx.formats.base import Format
from fsspec_csx.formats.checkpoint_info import CheckpointInfo
from fsspec_csx.formats.dcp import verify
from fsspec_csx.formats.dcp.folder import Folder
from fsspec_csx.formats.dcp.source import ShardedSource
from fsspec_csx.formats.scan import Sum
from fsspec_csx.formats.verify_report import Report
from fsspec_csx.storage import folder as storage_folder
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source


class DistributedFormat(Format):
    """Folders of shards."""

    name = "distributed"
    flattened = True

    def open_folder(
        self, folder: storage_folder.Folder, names: Callable[[], Collection[str]]
    ) -> contextlib.AbstractContextManager[Source | None]:
        """See ``Format``; the registry knows already that there is a manifest."""
        return contextlib.closing(ShardedSource(Folder(folder.fs, folder.path, folder.name)))

    def structure(
        self,
        source: Source,
        name: str,
        *,
        map_location: Any = "cpu",
        weights_only: bool = True,
        wanted: Collection[int] | None = None,
        partial: bool = False,
    ) -> LazyObject:
        """See ``Format``; on the CPU."""
        assert isinstance(source, ShardedSource)
        return source.structure(weights_only=weights_only, partial=partial)

    def info(self, source: Source, name: str) -> CheckpointInfo:
        """See ``Format``."""
        assert isinstance(source, ShardedSource)
        return source.info()

    def verify(self, source: Source, name: str, progress: Callback, compute: Sum) -> Report:
        """See ``Format``."""
        assert isinstance(source, ShardedSource)
        meter = ProgressMeter(progress, source.stored)
        report = verify.examine(source, meter.advance)
        meter.finish()
        return report


FORMAT = DistributedFormat()
