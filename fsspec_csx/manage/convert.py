"""Converts checkpoints to other formats and dtypes, and extracts parts of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fsspec.callbacks import Callback

from fsspec_csx.checkpoint.api import inspect
from fsspec_csx.formats import registry
from fsspec_csx.manage import contents
from fsspec_csx.manage.location import Location, already_exists, needs_source_name, with_name
from fsspec_csx.storage.progress import report_progress

if TYPE_CHECKING:
    import torch

FORMATS = registry.NAMES
"""The formats that can be written."""

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""The names of the dtypes that floating-point tensors can be cast to."""


@dataclass(frozen=True)
class ConvertResult:
    """A converted checkpoint."""

    path: str  # the path of the new checkpoint, without any password
    format: str  # one of ``FORMATS``
    size: int  # the size of the file or folder, in bytes
    tensors: int
    cast: int  # the number of tensors that were cast
    dropped: tuple[str, ...]  # the names of omitted values, as a safetensors file holds only tensors
    separated: tuple[str, ...]  # the names of tensors that shared memory, and became copies in a safetensors file
    overflowed: tuple[str, ...]  # the names of tensors in which finite numbers became infinite in the new dtype


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    keys: Iterable[str] | Callable[[str], bool] | None = None,
    format: str | None = None,
    drop_values: bool = False,
    overwrite: bool = False,
    max_shard_size: int | str | None = None,
    callback: Callback | None = None,
) -> ConvertResult:
    """Convert a checkpoint to another format or dtype, or extract a part of it.

    The checkpoint is streamed, with about 100 MiB of memory. More memory is needed for files that ``load`` reads
    completely (torch before 1.6, sparse or quantized tensors, compressed files), and for a transposed tensor in a
    safetensors file. The format ``distributed`` (one shard) needs memory for the largest tensor, ``cerebras`` for all.
    The checksums of torch files and shards are verified. An existing checkpoint is replaced only by a complete one,
    except a Cerebras checkpoint (see ``save``). Values that the format cannot hold are refused before any write.

    A torch file keeps nesting, other values, shared memory and parameters; tensors move to the CPU. A safetensors file,
    and each file of the format ``huggingface``, has the tensors by dotted name. A single safetensors file also keeps
    the metadata of a safetensors source.

    Paths and ``keys`` are as for ``load``, ``max_shard_size`` as for ``save``. A target that ends in a slash, or is a
    local folder, gets the source's name, with the suffix of the format. ``dtype`` casts floating-point tensors. The
    default format follows from the target's suffix, and otherwise is ``torch``.

    Raises:
        ValueError: if a path cannot name a checkpoint, the source is invalid or lacks an entry of ``keys``, the format
            cannot hold it, or the dtype or format is unknown.
        FileExistsError: if the target exists, unless ``overwrite``; also if a folder would replace a file.
        IsADirectoryError: if a file would replace a folder.
    """
    _check(dtype, format)
    origin = Location.of(source)
    written, kind = _written(origin, target, format)
    place = Location.of(written)
    if not overwrite and place.exists():
        raise already_exists(place.text)
    if overwrite:
        _check_kind(place, folder=registry.is_folder(kind) and not contents.is_index(place.name))
    with report_progress(callback, place.text) as progress, origin.source() as opened:
        import torch  # imported here, so that errors in paths are reported fast

        from fsspec_csx.formats.base import ConvertOptions
        from fsspec_csx.formats.writer import Target

        cast = None if dtype is None else getattr(torch, _name(dtype))
        writes = registry.get_format(kind)
        shards = registry.shard_options(writes, max_shard_size)
        options = ConvertOptions(origin.display_path, cast, keys, drop_values, not overwrite, **shards)
        found = writes.convert(opened, options, Target(*place.through, place.display_path), progress)
    size = found.size or inspect(written).size
    return ConvertResult(place.display_path, kind, **{**vars(found), "size": size})


def _check(dtype: torch.dtype | str | None, format: str | None) -> None:
    if format not in (None, *FORMATS):
        msg = f"The format {format!r} cannot be written. Choose one of {', '.join(FORMATS)}."
        raise ValueError(msg)
    if dtype is not None and _name(dtype) not in DTYPES:
        msg = f"Tensors cannot be cast to {dtype!r}. Choose one of {', '.join(DTYPES)}."
        raise ValueError(msg)


def _check_kind(place: Location, *, folder: bool) -> None:
    if not place.exists() or place.is_folder() == folder:
        return
    if folder:
        msg = f"{place.display_path} is a file, but the checkpoint becomes a folder. Delete it, or choose another name."
        raise FileExistsError(msg)
    own = [layout.manifest for layout in registry.layouts() if layout.lists_files]
    if not place.is_csx or any(place.fs.exists(f"{place.path}/{name}") for name in own):
        msg = f"{place.display_path} is a folder, but the checkpoint becomes a file. Delete it, or choose another name."
        raise IsADirectoryError(msg)


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _written(
    origin: Location, target: str | os.PathLike[str], format: str | None
) -> tuple[str | os.PathLike[str], str]:
    """Return the path to write to, and the format; in a folder the source gives the name."""
    name, text = origin.name, os.fspath(target)
    kind = format or registry.name_for(name if needs_source_name(target) else text)
    if not needs_source_name(target):
        return target, kind
    own = registry.suffix(kind)
    if not own and not text.endswith("/") and contents.is_checkpoint_folder(os.listdir(text)):
        return target, kind  # the target itself is a checkpoint
    suffixes = (*registry.INDEX_SUFFIXES, *registry.SUFFIXES)
    suffix = next((each for each in suffixes if name.endswith(each) and name != each), "")
    of_index = suffix in registry.INDEX_SUFFIXES
    if format is None and of_index:
        return with_name(target, name), kind
    of_folder = not suffix and own and origin.is_folder()
    if not own or of_folder or of_index or name.endswith(".safetensors") != (kind == "safetensors"):
        name = name[: len(name) - len(suffix)] + own
    return with_name(target, name), kind
