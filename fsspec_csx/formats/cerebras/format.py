"""The format of Cerebras checkpoints: prefixes of objects, and HDF5 files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from fsspec.callbacks import Callback

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats import reader
from fsspec_csx.formats.base import ON_CPU, Converted, ConvertOptions, Format, ReadOptions
from fsspec_csx.formats.cerebras import folder as cerebras_folder
from fsspec_csx.formats.cerebras import hdf5, verify
from fsspec_csx.formats.cerebras import source as cerebras_source
from fsspec_csx.formats.cerebras.source import CerebrasSource
from fsspec_csx.formats.cerebras.writer import CerebrasWriter
from fsspec_csx.formats.checkpoint_info import CheckpointInfo
from fsspec_csx.formats.torch_zip.storage_placement import placed
from fsspec_csx.formats.verify_report import Report, Sum, damage_of
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.progress import ProgressMeter
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.names import walk
from fsspec_csx.tensors.source import Source


class CerebrasFormat(Format[CerebrasSource]):
    """Tensors by name, and a specification of the nesting."""

    name = "cerebras"
    flattened = True
    writer_class = CerebrasWriter

    def open_file(self, file: Source, head: bytes, folder: Folder, name: str) -> Source | None:
        return hdf5.source(file, folder.name) if head.startswith(hdf5.MAGIC) else None

    def open_folder(
        self, folder: Folder, names: Callable[[], Collection[str]]
    ) -> contextlib.AbstractContextManager[Source | None]:
        return cerebras_folder.opened(folder)

    def structure(self, source: CerebrasSource, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        found = placed(source, source.tensors(), name, options)
        return replace(found, obj=source.rebuild(found.obj, weights_only=options.weights_only))

    def refuse_unread(self, obj: Any, name: str) -> None:
        cerebras_source.refuse_unread(obj, name)

    def info(self, source: CerebrasSource, name: str) -> CheckpointInfo:
        return source.info()

    def examine(self, source: CerebrasSource, name: str, compute: Sum) -> Report:
        try:
            return verify.examine(source)
        except CheckpointError as error:  # invalid links
            return Report(damage=[damage_of(error, name)])

    def convert(self, source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
        """Convert; this loads the whole source into memory."""
        self.refuse_cast(options)
        # With keys, the error names an entry that cannot be loaded.
        obj = reader.read(source, name=options.name, keys=options.keys or (lambda name: True))
        writer = self.writer(obj)
        meter = ProgressMeter(progress, writer.nbytes)
        writer.save(target, advance=meter.advance)
        meter.finish()
        return Converted(0, sum(isinstance(each, torch.Tensor) for _, each in walk(obj)))


FORMAT = CerebrasFormat()
