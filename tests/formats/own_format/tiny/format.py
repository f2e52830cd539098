"""The reader and the writer of the small format: vectors of float32, each in a separate file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator

import torch
from fsspec.callbacks import Callback
from fsspec_csx.formats.tiny.layout import MANIFEST

from fsspec_csx.formats.base import ON_CPU, Converted, ConvertOptions, Format, ReadOptions
from fsspec_csx.formats.verify_report import Report, Sum
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.folder import Folder
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source, memory_of


class TinySource(Source):
    """The tensors of a folder by name."""

    format = "tiny"

    def __init__(self, folder: Folder) -> None:
        super().__init__(None, 0)
        with folder.open(MANIFEST) as file:
            sizes = json.load(file)
        self.tensors = {name: torch.empty(size) for name, size in sizes.items()}
        self.short = []
        for name, tensor in self.tensors.items():
            with folder.open(name) as file:
                data = file.read()
            self.short += [name] if len(data) != tensor.nbytes else []
            memory_of(tensor.untyped_storage())[: len(data)] = data


class TinyFormat(Format[TinySource]):
    """Folders of raw tensors."""

    name = "tiny"

    @contextlib.contextmanager
    def open_folder(self, folder: Folder, names: Callable[[], Collection[str]]) -> Iterator[Source | None]:
        yield TinySource(folder) if MANIFEST in names() else None

    def structure(self, source: TinySource, name: str, options: ReadOptions = ON_CPU) -> LazyObject:
        return LazyObject({key.removesuffix(".tiny"): each for key, each in source.tensors.items()}, [])

    def examine(self, source: TinySource, name: str, compute: Sum) -> Report:
        return Report(unchecked=len(source.tensors), damage=[f"{each} has a wrong size" for each in source.short])

    def convert(self, source: Source, options: ConvertOptions, target: Target, progress: Callback) -> Converted:
        raise NotImplementedError


FORMAT = TinyFormat()
