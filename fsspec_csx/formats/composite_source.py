"""A checkpoint of many files as one source of bytes, which reads itself what it holds."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from fsspec_csx.formats.checkpoint_info import CheckpointInfo
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.names import Keys
from fsspec_csx.tensors.source import Source


class CompositeSource(Source):
    """A source whose bytes are those of tensors, one after the other, wherever they lie; no span reaches over two."""

    @abstractmethod
    def load(self, *, keys: Keys | None, map_location: Any, weights_only: bool) -> Any:
        """What it holds, or a part of it; see ``checkpoint.load``."""

    @abstractmethod
    def structure(self, *, weights_only: bool = True, partial: bool = False) -> LazyObject:
        """What it holds, on the CPU, with records of where in the source its tensors' bytes are; see ``Format``."""

    @abstractmethod
    def info(self) -> CheckpointInfo:
        """What it holds, without its tensors' data."""
