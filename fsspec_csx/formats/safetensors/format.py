"""The format of safetensors files."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fsspec_csx.formats import placement
from fsspec_csx.formats.base import FileFormat
from fsspec_csx.formats.safetensors import layout, reader
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source


class SafetensorsFormat(FileFormat):
    """Files of tensors by name."""

    name = "safetensors"

    def matches(self, head: bytes, size: int) -> bool:
        """See ``Format``."""
        return layout.is_safetensors(head, size)

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
        """See ``Format``."""
        return placement.placed(source, reader.structure(source, name=name), name, map_location, wanted)

    def safetensors_metadata(self, source: Source) -> dict[str, str]:
        """See ``Format``."""
        return reader.metadata(source)

    def written_by(self, source: Source) -> tuple[str, dict[str, str]]:
        """See ``FileFormat``."""
        return "safetensors", reader.metadata(source)


FORMAT = SafetensorsFormat()
