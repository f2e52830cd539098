"""Converts checkpoints: between formats, to other dtypes, and to a part of what they hold."""

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
"""What can be written."""

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""What tensors of floating-point numbers can be cast to, by name."""

_SUFFIX = ".safetensors"
_TORCH_SUFFIX = ".mdl"


@dataclass(frozen=True)
class ConvertResult:
    """What became of a checkpoint.

    Attributes:
        path: where it is now, without any password.
        format: one of ``FORMATS``.
        size: that of the file, or of what is in the folder, in bytes.
        tensors: how many it holds.
        cast: how many of them in another dtype than before.
        dropped: the names of what it lacks, as a safetensors file holds tensors alone.
        separated: the names of tensors that shared memory with others, which a safetensors file cannot tell, and so
            are copies now.
        overflowed: the names of tensors in whose memory finite numbers became infinite, as their dtype has none so
            large.
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
    """Write a checkpoint anew, in another format, in another dtype, or a part of it.

    It is read while it is written, with some 100 MiB of memory whatever its size; only a file that ``load`` reads whole
    (of torch before 1.6, of sparse or quantized tensors, compressed) is in memory, and a transposed tensor while it is
    written to a safetensors file. The checksums that torch files and shards have are checked.
    What was at the target before is replaced only by a whole checkpoint, but for that of a Cerebras one, as of
    ``save``.

    A torch file keeps the nesting, values that are no tensors, memory that tensors share, and parameters; tensors of
    other devices become those of the CPU. A safetensors file has the tensors by their dotted names; the metadata of one
    stays where it becomes another.

    The format ``distributed`` (a folder of torch.distributed.checkpoint, of one shard) takes the memory of the largest
    tensor; ``cerebras`` (objects on S3) is written from an object in memory. What a format cannot hold is refused
    before anything is written.

    Args:
        source: a local path or an fsspec URL, as of ``load``; a sharded or a Cerebras checkpoint is a folder.
        target: the like; one that ends in a slash, or is a local folder, takes the source's name, with a suffix of the
            format.
        dtype: one of torch, or its name, that tensors of floating-point numbers are cast to; by default they stay. Bits
            that it lacks are lost as by ``Tensor.to``. Only for a file.
        keys: as of ``load``.
        format: one of ``FORMATS``; by default ``torch`` or ``safetensors``, as the target's suffix says.
        drop_values: whether a safetensors file may go without what is no tensor.
        overwrite: whether a checkpoint at the target may be replaced.
        source_options: arguments for the source's filesystem, such as ``{"profile": "my-profile"}``.
        target_options: the like for the target's.
        callback: gets the total in bytes by ``set_size``, and the bytes written by ``relative_update``, as of ``save``.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        CheckpointError: a ValueError, if the source is not what it should be, or has nothing of a name in ``keys``.
        FileExistsError: if there is something at the target, unless ``overwrite``; also a file where a folder is to be.
        IsADirectoryError: if a folder is to be replaced by a file.
        ValueError: if the format cannot hold what the source does, or of an unknown dtype or format.
        OSError: whatever a filesystem raised, as it raised it.
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
        told = inspect(written, storage_options=target_options)
        return ConvertResult(place.display_path, kind, told.size, len(told.tensors), 0, (), (), ())
    with report_progress(callback, place.text) as progress, origin.source() as opened:
        import torch  # only here, as all that is wrong with the paths is told at once without it

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
        msg = f"The format {format!r} is none that can be written. Choose one of {', '.join(FORMATS)}."
        raise ValueError(msg)
    if dtype is not None and _name(dtype) not in DTYPES:
        msg = f"Tensors cannot be cast to {dtype!r}. Choose one of {', '.join(DTYPES)}."
        raise ValueError(msg)
    if dtype is not None and format in (DISTRIBUTED, CEREBRAS):
        msg = f"Tensors are cast on their way into one file, and not into the format {format}."
        msg += " Convert to a file with the dtype, and then that file."
        raise ValueError(msg)


def _write_cerebras(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    keys: Iterable[str] | Callable[[str], bool] | None,
    source_options: Mapping[str, Any] | None,
    target_options: Mapping[str, Any] | None,
    callback: Callback | None,
) -> None:
    # A caller's callback is told of what is written alone.
    reading = None if callback is None else NoOpCallback()
    # By keys, an entry that cannot be loaded is named.
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
        msg = f"{place.display_path} is a file, and the checkpoint becomes a folder. Delete it, or choose another name."
        raise FileExistsError(msg)
    if not place.bulk or place.fs.exists(f"{place.path}/{naming.METADATA}"):
        msg = f"{place.display_path} is a folder, and the checkpoint becomes a file. Delete it, or choose another name."
        raise IsADirectoryError(msg)


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _written(
    origin: Location, target: str | os.PathLike[str], format: str | None
) -> tuple[str | os.PathLike[str], str]:
    """The path to write to, and in which format; in a folder its name follows the source's."""
    name, text = origin.name, os.fspath(target)
    if format == DISTRIBUTED and not text.endswith("/") and os.path.isdir(text) and naming.is_sharded(os.listdir(text)):
        return target, format  # a checkpoint is no folder of checkpoints
    if not takes_names(target):
        return target, format or (SAFETENSORS if text.endswith(_SUFFIX) else TORCH)
    kind = format or (SAFETENSORS if name.endswith(_SUFFIX) else TORCH)
    suffix = next((each for each in SUFFIXES if name.endswith(each) and name != each), "")
    own = {SAFETENSORS: _SUFFIX, DISTRIBUTED: ""}.get(kind, _TORCH_SUFFIX)
    of_folder = not suffix and kind != DISTRIBUTED and origin.is_folder()
    if kind == DISTRIBUTED or of_folder or name.endswith(_SUFFIX) != (kind == SAFETENSORS):
        name = name[: len(name) - len(suffix)] + own
    return _named(target, name), kind
