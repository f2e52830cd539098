"""The registry of checkpoint formats, and the detection of a checkpoint's format."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsspec_csx.formats import sniff

if TYPE_CHECKING:
    from fsspec_csx.formats.base import Format
    from fsspec_csx.formats.folder_layout import FolderLayout
    from fsspec_csx.formats.writer import CheckpointWriter
    from fsspec_csx.tensors.source import Source


@dataclass(frozen=True)
class _Row:
    """A format whose folder is not imported yet.

    Attributes:
        folder: its folder in ``formats/``; the module ``format`` in it defines ``FORMAT``.
        suffixes: ``save`` uses the format for paths with these suffixes.
        suffix: the suffix of converted checkpoints; empty if they have none.
        others: further suffixes of files of the format.
        file: whether a checkpoint is a single file; if not, the module ``layout`` defines ``LAYOUT``.
        lazy: whether the format is imported only for folders with the manifest of its layout, because it imports
            torch.distributed.
    """

    folder: str
    suffixes: tuple[str, ...] = ()
    suffix: str = ""
    others: tuple[str, ...] = ()
    file: bool = False
    lazy: bool = False


# Files and folders are tried in this order. torch is last, because its reader explains what is wrong with files of
# unknown formats.
_ROWS = {
    "cerebras": _Row("cerebras", suffix=".mdl"),
    "distributed": _Row("dcp", lazy=True),
    "huggingface": _Row("huggingface", (".safetensors.index.json",)),
    "safetensors": _Row("safetensors", (".safetensors",), ".safetensors", file=True),
    "torch": _Row("torch_zip", ("",), ".mdl", (".pt", ".pth", ".bin", ".ckpt"), file=True),
}

SUFFIXES = tuple(each for row in _ROWS.values() if row.file for each in (row.suffix, *row.others))
"""The suffixes of checkpoint files."""

INDEX_SUFFIXES = tuple(suffix for row in _ROWS.values() if not row.file for suffix in row.suffixes)
"""The suffixes of files whose path ``load`` takes for the checkpoint in their folder."""

NAMES = ("torch", "safetensors", *(name for name, row in _ROWS.items() if not row.file))
"""The names of all formats; all can be written."""


@functools.cache
def get_format(name: str) -> Format[Any]:
    """Return the format of this name; raise a ValueError if there is none."""
    if name not in _ROWS:
        msg = f"There is no format {name!r}. Choose one of {', '.join(NAMES)}."
        raise ValueError(msg)
    found: Format[Any] = import_module(f"fsspec_csx.formats.{_ROWS[name].folder}.format").FORMAT
    return found


@functools.cache
def get_layout(name: str) -> FolderLayout:
    """Return the layout of a format whose checkpoints are folders."""
    found: FolderLayout = import_module(f"fsspec_csx.formats.{_ROWS[name].folder}.layout").LAYOUT
    return found


def layouts() -> list[FolderLayout]:
    """Return the layouts of all formats whose checkpoints are folders."""
    return [get_layout(name) for name, row in _ROWS.items() if not row.file]


def manifests(names: Collection[str]) -> list[str]:
    """Return the files that make a folder with these files a checkpoint of any format; none if it is no checkpoint."""
    known = layouts()
    if not any(each.is_checkpoint(names) for each in known):
        return []
    return [name for each in known for name in each.manifests(names)]


def is_folder(name: str) -> bool:
    """Return whether checkpoints of a format are folders."""
    return not _ROWS[name].file


def suffix(name: str) -> str:
    """Return the suffix of a converted checkpoint; empty if the format's folders have none."""
    return _ROWS[name].suffix


def writer(
    obj: Any, path: str, format: str | None = None, *, copied: bool = False, max_shard_size: int | str | None = None
) -> CheckpointWriter:
    """Return a writer for an object; without ``format``, the suffix of the path decides. See ``Format.writer``.

    Raises:
        ValueError: if there is no such format, or it cannot hold the object, or has no shards.
        Exception: any error of pickle, for an object that cannot be pickled.
    """
    found = get_format(format or name_for(path))
    return found.writer(obj, copied=copied, **shard_options(found, max_shard_size))


def shard_options(format: Format[Any], max_shard_size: int | str | None) -> dict[str, Any]:
    """Return the option for the size of shards, if one is given; a ValueError if the format has no shards."""
    if max_shard_size is None:
        return {}
    if not format.has_shard_size:
        msg = f"max_shard_size is for the format huggingface, not for {format.name}. Leave it out, or name that format."
        raise ValueError(msg)
    return {"max_shard_size": max_shard_size}


def name_for(path: str) -> str:
    """Return the name of the format for a path, by its suffix."""
    return next(name for name, row in _ROWS.items() if path.endswith(row.suffixes))


def folders(exists: Callable[[str], bool]) -> Iterator[Format[Any]]:
    """Yield the formats that a folder may have, in the order to try; ``exists`` says whether the folder has a file."""
    for name, row in _ROWS.items():
        if not row.file and (not row.lazy or exists(get_layout(name).manifest)):
            yield get_format(name)


def multi_file_formats() -> list[Format[Any]]:
    """Return the formats in which one file may stand for a checkpoint of many files."""
    return [get_format(name) for name, row in _ROWS.items() if not row.file and not row.lazy]


def format_of(source: Source) -> Format[Any]:
    """Return the format of an opened checkpoint."""
    if source.format:
        return get_format(source.format)
    head = source.head(sniff.HEAD)
    files = (get_format(name) for name, row in _ROWS.items() if row.file)
    return next(found for found in files if found.matches(head, source.size))
