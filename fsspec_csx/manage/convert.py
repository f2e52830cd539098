"""Converts checkpoints to other formats and dtypes, and extracts parts of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsspec.callbacks import Callback, NoOpCallback

from fsspec_csx.checkpoint.api import inspect, load, save
from fsspec_csx.manage import naming
from fsspec_csx.manage.copy import _named, takes_names
from fsspec_csx.manage.location import Location, already_exists
from fsspec_csx.manage.naming import SUFFIXES
from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.progress import ProgressMeter, report_progress

if TYPE_CHECKING:
    import torch


TORCH, SAFETENSORS = "torch", "safetensors"
DISTRIBUTED, CEREBRAS = "distributed", "cerebras"
FORMATS = (TORCH, SAFETENSORS, DISTRIBUTED, CEREBRAS)
"""The formats that can be written."""

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""The names of the dtypes that floating-point tensors can be cast to."""

_SUFFIX = ".safetensors"
_TORCH_SUFFIX = ".mdl"


@dataclass(frozen=True)
class ConvertResult:
    """A converted checkpoint.

    Attributes:
        path: its path, without any password.
        format: one of ``FORMATS``.
        size: the size of the file or folder, in bytes.
        tensors: the number of its tensors.
        cast: how many of them were cast.
        dropped: the names of omitted values, as a safetensors file holds only tensors.
        separated: the names of tensors that shared memory, and are copies in a safetensors file.
        overflowed: the names of tensors in which finite numbers became infinite in the new dtype.
    """

    path: str
    format: str
    size: int
    tensors: int
    cast: int
    dropped: tuple[str, ...]
    separated: tuple[str, ...]
    overflowed: tuple[str, ...]


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
    keys: Iterable[str] | Callable[[str], bool] | None = None,
    format: str | None = None,
    drop_values: bool = False,
    overwrite: bool = False,
    source_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> ConvertResult:
    """Convert a checkpoint to another format or dtype, or extract a part of it.

    The checkpoint is streamed, with some 100 MiB of memory. In memory are only files that ``load`` reads completely
    (torch before 1.6, sparse or quantized tensors, compressed files), and a transposed tensor while it is written to a
    safetensors file. The checksums of torch files and shards are verified. An existing checkpoint is replaced only by a
    complete one, except a Cerebras checkpoint (see ``save``).

    A torch file keeps the nesting, other values, shared memory and parameters; tensors move to the CPU. A safetensors
    file has the tensors by their dotted names, and keeps the metadata of a safetensors source.

    The format ``distributed`` (a folder of torch.distributed.checkpoint with one shard) needs the memory of the largest
    tensor; ``cerebras`` (objects on S3) needs that of the whole checkpoint. What a format cannot hold is refused before
    anything is written.

    Args:
        source: a local path or an fsspec URL, as for ``load``; a sharded or a Cerebras checkpoint is a folder.
        target: a local path or an fsspec URL. If it ends in a slash, or is a local folder, the source's name is added,
            with the suffix of the format.
        dtype: a torch dtype, or its name, to cast floating-point tensors to, with the precision of ``Tensor.to``. Only
            for a file.
        keys: as for ``load``.
        format: one of ``FORMATS``; by default ``safetensors`` for that suffix of the target, otherwise ``torch``.
        drop_values: whether to omit values that a safetensors file cannot hold.
        overwrite: whether an existing checkpoint may be replaced.
        source_options: arguments for the source's filesystem, such as ``{"profile": "my-profile"}``.
        target_options: arguments for the target's filesystem.
        callback: gets the total in bytes by ``set_size``, and the bytes written by ``relative_update``.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        CheckpointError: a ValueError, if the source is invalid, or lacks an entry of ``keys``.
        FileExistsError: if the target exists, unless ``overwrite``; also if a folder would replace a file.
        IsADirectoryError: if a file would replace a folder.
        ValueError: if the format cannot hold the source, or the dtype or format is unknown.
        OSError: raised by a filesystem.
    """
    _check(dtype, format)
    origin = Location.of(source, source_options)
    written, kind = _written(origin, target, format)
    place = Location.of(written, target_options)
    if not overwrite and place.exists():
        raise already_exists(place.text)
    if overwrite:
        _check_kind(place, folder=kind in (DISTRIBUTED, CEREBRAS))
    if kind in (DISTRIBUTED, CEREBRAS):
        if kind == DISTRIBUTED:
            _write_sharded(origin, written, keys, target_options, callback)
        else:
            _write_cerebras(source, written, keys, source_options, target_options, callback)
        info = inspect(written, storage_options=target_options)
        return ConvertResult(place.display_path, kind, info.size, len(info.tensors), 0, (), (), ())
    with report_progress(callback, place.text) as progress, origin.source() as opened:
        import torch  # imported here, so that errors in paths come fast

        from fsspec_csx.formats.conversion import Conversion

        converting = Conversion(
            opened,
            name=origin.display_path,
            as_safetensors=kind == SAFETENSORS,
            dtype=None if dtype is None else getattr(torch, _name(dtype)),
            keys=keys,
            drop_values=drop_values,
        )
        meter = ProgressMeter(progress, converting.nbytes, estimated=True)
        with atomic_write(*place.through, exclusive=not overwrite) as replaced:
            overflowed = converting.write(replaced, advance=meter.advance)
        meter.finish()
    return ConvertResult(
        path=place.display_path,
        format=kind,
        size=converting.nbytes,
        tensors=converting.tensors,
        cast=converting.cast,
        dropped=converting.dropped,
        separated=converting.separated,
        overflowed=overflowed,
    )


def _check(dtype: torch.dtype | str | None, format: str | None) -> None:
    if format not in (None, *FORMATS):
        msg = f"The format {format!r} cannot be written. Choose one of {', '.join(FORMATS)}."
        raise ValueError(msg)
    if dtype is not None and _name(dtype) not in DTYPES:
        msg = f"Tensors cannot be cast to {dtype!r}. Choose one of {', '.join(DTYPES)}."
        raise ValueError(msg)
    if dtype is not None and format in (DISTRIBUTED, CEREBRAS):
        msg = f"Tensors cannot be cast for the format {format}. Convert to a file with the dtype, and then that file."
        raise ValueError(msg)


def _write_cerebras(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    keys: Iterable[str] | Callable[[str], bool] | None,
    source_options: Mapping[str, Any] | None,
    target_options: Mapping[str, Any] | None,
    callback: Callback | None,
) -> None:
    # The callback counts only what is written.
    reading = None if callback is None else NoOpCallback()
    # With keys, the error names an entry that cannot be loaded.
    obj = load(source, keys=keys or (lambda name: True), storage_options=source_options, callback=reading)
    save(obj, target, format="cerebras", storage_options=target_options, callback=callback)


def _write_sharded(
    origin: Location,
    target: str | os.PathLike[str],
    keys: Iterable[str] | Callable[[str], bool] | None,
    target_options: Mapping[str, Any] | None,
    callback: Callback | None,
) -> None:
    from fsspec_csx.distributed.consolidate import write_sharded  # only here, as it imports torch.distributed

    with report_progress(callback, os.fspath(target)) as progress, origin.source() as opened:
        write_sharded(
            opened, target, name=origin.display_path, keys=keys, storage_options=target_options, callback=progress
        )


def _check_kind(place: Location, *, folder: bool) -> None:
    """Refuse to replace a file by a folder, or a folder by a file."""
    if not place.exists() or place.is_folder() == folder:
        return
    if folder:
        msg = f"{place.display_path} is a file, but the checkpoint becomes a folder. Delete it, or choose another name."
        raise FileExistsError(msg)
    if not place.bulk or place.fs.exists(f"{place.path}/{naming.METADATA}"):
        msg = f"{place.display_path} is a folder, but the checkpoint becomes a file. Delete it, or choose another name."
        raise IsADirectoryError(msg)


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _written(
    origin: Location, target: str | os.PathLike[str], format: str | None
) -> tuple[str | os.PathLike[str], str]:
    """The path to write to, and the format; in a folder the name comes from the source."""
    name, text = origin.name, os.fspath(target)
    if format == DISTRIBUTED and not text.endswith("/") and os.path.isdir(text) and naming.is_sharded(os.listdir(text)):
        return target, format  # the folder is a checkpoint, not a folder of checkpoints
    if not takes_names(target):
        return target, format or (SAFETENSORS if text.endswith(_SUFFIX) else TORCH)
    kind = format or (SAFETENSORS if name.endswith(_SUFFIX) else TORCH)
    suffix = next((each for each in SUFFIXES if name.endswith(each) and name != each), "")
    own = {SAFETENSORS: _SUFFIX, DISTRIBUTED: ""}.get(kind, _TORCH_SUFFIX)
    of_folder = not suffix and kind != DISTRIBUTED and origin.is_folder()
    if kind == DISTRIBUTED or of_folder or name.endswith(_SUFFIX) != (kind == SAFETENSORS):
        name = name[: len(name) - len(suffix)] + own
    return _named(target, name), kind
