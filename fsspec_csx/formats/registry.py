"""The formats of checkpoints, and which one a checkpoint has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsspec_csx.formats import sniff

if TYPE_CHECKING:
    from fsspec_csx.formats.base import Format
    from fsspec_csx.formats.writer import CheckpointWriter
    from fsspec_csx.tensors.source import Source


@dataclass(frozen=True)
class _Row:
    """A format, before its folder is imported: some import torch.distributed.

    Attributes:
        folder: in ``formats/``; its module ``format`` has the ``FORMAT``.
        suffixes: of the paths that are saved in it.
        suffix: of the names of converted checkpoints; empty for folders that take the name without one.
        file: whether a checkpoint is one file.
        manifest: the file that a folder of the format always has; empty if ``open_folder`` looks for itself.
    """

    folder: str
    suffixes: tuple[str, ...] = ()
    suffix: str = ""
    file: bool = False
    manifest: str = ""


# Of files, the first that matches counts: torch's is the last, as it says what is wrong with a file of no format.
# Folders are looked for in this order.
_ROWS = {
    "cerebras": _Row("cerebras", suffix=".mdl"),
    "distributed": _Row("dcp", manifest=".metadata"),
    "huggingface": _Row("huggingface", (".safetensors.index.json",)),
    "safetensors": _Row("safetensors", (".safetensors",), ".safetensors", file=True),
    "torch": _Row("torch_zip", ("",), ".mdl", file=True),
}

NAMES = ("torch", "safetensors", *(name for name, row in _ROWS.items() if not row.file))
"""The names of all formats; each can be written."""


@functools.cache
def named(name: str) -> Format[Any]:
    """The format of a name; a ValueError if there is none."""
    if name not in _ROWS:
        msg = f"There is no format {name!r}. Choose one of {', '.join(NAMES)}."
        raise ValueError(msg)
    found: Format[Any] = import_module(f"fsspec_csx.formats.{_ROWS[name].folder}.format").FORMAT
    return found


def is_folder(name: str) -> bool:
    """Whether a checkpoint of a format is a folder."""
    return not _ROWS[name].file


def suffix(name: str) -> str:
    """The suffix of a converted checkpoint of a format; empty for a folder that has none."""
    return _ROWS[name].suffix


def writer(
    obj: Any, path: str, format: str | None = None, *, copied: bool = False, max_shard_size: int | str | None = None
) -> CheckpointWriter:
    """An object that is to be saved; see ``Format.writer`` and ``checkpoint.save``. Without a format the suffix counts.

    Raises:
        ValueError: if there is no such format, or it cannot hold the object, or has no shards.
        Exception: raised by pickle for an object that cannot be saved.
    """
    found = named(format or name_for(path))
    if max_shard_size is None:
        return found.writer(obj, copied=copied)
    if not found.has_shard_size:
        msg = f"max_shard_size is for the format huggingface, not for {found.name}. Leave it out, or name that format."
        raise ValueError(msg)
    return found.writer(obj, copied=copied, max_shard_size=max_shard_size)


def name_for(path: str) -> str:
    """The name of the format in which a path is saved, by its suffix."""
    return next(name for name, row in _ROWS.items() if path.endswith(row.suffixes))


def folders(exists: Callable[[str], bool]) -> Iterator[Format[Any]]:
    """The formats that a folder may have, in the order to try; ``exists`` says whether the folder has a file."""
    for name, row in _ROWS.items():
        if not row.file and (not row.manifest or exists(row.manifest)):
            yield named(name)


def of_parts() -> list[Format[Any]]:
    """The formats of which a file may be a part."""
    return [named(name) for name, row in _ROWS.items() if not row.file and not row.manifest]


def of(source: Source) -> Format[Any]:
    """The format of an opened checkpoint."""
    if source.format:
        return named(source.format)
    head = source.head(sniff.HEAD)
    files = (named(name) for name, row in _ROWS.items() if row.file)
    return next(found for found in files if found.matches(head, source.size))
