"""The formats of checkpoints, and which one a checkpoint has."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING

from fsspec_csx.formats import sniff

if TYPE_CHECKING:
    from fsspec_csx.formats.base import Format
    from fsspec_csx.tensors.source import Source

# The folder of each format; it is imported when it is needed, as some import torch.distributed. Of files, the first
# that matches counts; torch's is the last, as it says what is wrong with a file of no format.
_FOLDERS = {
    "distributed": "dcp",
    "cerebras": "cerebras",
    "safetensors": "safetensors",
    "torch": "torch_zip",
}
_FILES = ("safetensors", "torch")


@functools.cache
def named(name: str) -> Format:
    """The format of a name."""
    found: Format = import_module(f"fsspec_csx.formats.{_FOLDERS[name]}.format").FORMAT
    return found


def of(source: Source) -> Format:
    """The format of an opened checkpoint.

    Raises:
        OSError: what the file raised.
    """
    if source.format:
        return named(source.format)
    (head,) = source.bytes_of([(0, min(source.size, sniff.HEAD))])
    return next(found for found in map(named, _FILES) if found.matches(head, source.size))
