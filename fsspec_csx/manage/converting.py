"""Converts checkpoints: between formats, to other dtypes, and to a part of what they hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsspec.callbacks import Callback

from fsspec_csx.atomic import replacing
from fsspec_csx.checkpoint import _size
from fsspec_csx.manage.copying import _named, takes_names
from fsspec_csx.manage.kinds import SUFFIXES
from fsspec_csx.manage.places import Place
from fsspec_csx.progress import Meter, reporting

if TYPE_CHECKING:
    import torch

TORCH, SAFETENSORS = "torch", "safetensors"
FORMATS = (TORCH, SAFETENSORS)
"""What can be written."""

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""What tensors of floating-point numbers can be cast to, by name."""

_SUFFIX = ".safetensors"
_TORCH_SUFFIX = ".mdl"


@dataclass(frozen=True)
class Converted:
    """What became of a checkpoint.

    Attributes:
        path: where it is now, without any password.
        format: ``torch`` or ``safetensors``.
        size: that of the file in bytes.
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
) -> Converted:
    """Write a checkpoint anew, in another format, in another dtype, or a part of it.

    It is read while it is written, with some 100 MiB of memory whatever its size; only a file that ``load`` reads whole
    (of torch before 1.6, of sparse or quantized tensors, compressed) is in memory, and a transposed tensor while it is
    written to a safetensors file. The checksums that torch files have are checked. What was at the target before is
    replaced only by a whole checkpoint.

    A torch file keeps the nesting, values that are no tensors, memory that tensors share, and parameters; tensors of
    other devices become those of the CPU. A safetensors file has the tensors by their dotted names; the metadata of one
    stays where it becomes another.

    Args:
        source: a local path or an fsspec URL, as of ``load``.
        target: the like; one that ends in a slash, or is a local folder, takes the source's name, with a suffix of the
            format.
        dtype: one of torch, or its name, that tensors of floating-point numbers are cast to; by default they stay. Bits
            that it lacks are lost as by ``Tensor.to``.
        keys: as of ``load``.
        format: ``torch`` or ``safetensors``; by default what the target's suffix says.
        drop_values: whether a safetensors file may go without what is no tensor.
        overwrite: whether a checkpoint at the target may be replaced.
        source_options: arguments for the source's filesystem, such as ``{"profile": "my-profile"}``.
        target_options: the like for the target's.
        callback: gets the total in bytes by ``set_size``, and the bytes written by ``relative_update``, as of ``save``.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        CheckpointError: a ValueError, if the source is not what it should be, or has nothing of a name in ``keys``.
        FileExistsError: if there is something at the target, unless ``overwrite``.
        ValueError: if a safetensors file cannot hold what the source does, or of an unknown dtype or format.
        OSError: whatever a filesystem raised, as it raised it.
    """
    _check(dtype, format)
    origin = Place.of(source, source_options)
    written, kind = _written(origin.name, target, format)
    place = Place.of(written, target_options)
    if not overwrite and place.exists():
        msg = f"{place.shown} exists already. Choose another name, or allow it to be overwritten."
        raise FileExistsError(msg)
    with reporting(callback, place.text) as progress, origin.opened() as file:
        import torch  # only here, as all that is wrong with the paths is told at once without it

        from fsspec_csx.formats.converting import Converting
        from fsspec_csx.formats.source import Source

        converting = Converting(
            Source(file, _size(file)),
            name=origin.shown,
            as_safetensors=kind == SAFETENSORS,
            dtype=None if dtype is None else getattr(torch, _name(dtype)),
            keys=keys,
            drop_values=drop_values,
        )
        meter = Meter(progress, converting.nbytes, estimated=True)
        with replacing(*place.through) as replaced:
            overflowed = converting.write(replaced, advance=meter.advance)
        meter.finish()
    return Converted(
        path=place.shown,
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


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")


def _written(name: str, target: str | os.PathLike[str], format: str | None) -> tuple[str | os.PathLike[str], str]:
    """The path to write to, and in which format; in a folder its name follows the source's."""
    if not takes_names(target):
        return target, format or (SAFETENSORS if os.fspath(target).endswith(_SUFFIX) else TORCH)
    kind = format or (SAFETENSORS if name.endswith(_SUFFIX) else TORCH)
    if name.endswith(_SUFFIX) != (kind == SAFETENSORS):
        suffix = next((each for each in SUFFIXES if name.endswith(each) and name != each), "")
        name = name[: len(name) - len(suffix)] + (_SUFFIX if kind == SAFETENSORS else _TORCH_SUFFIX)
    return _named(target, name), kind
