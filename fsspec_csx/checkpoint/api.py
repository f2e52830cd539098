"""save, load and inspect: checkpoints at any path that fsspec knows, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import fsspec
from fsspec.callbacks import Callback

from fsspec_csx.storage.atomic import atomic_write
from fsspec_csx.storage.files import open_file, resolve_path, unwrap_filesystem
from fsspec_csx.storage.paths import checkpoint_path, redacted
from fsspec_csx.storage.progress import ProgressMeter, report_progress

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION

    from fsspec_csx.formats.checkpoint_info import CheckpointInfo


def save(
    obj: object,
    path: str | os.PathLike[str],
    *,
    format: Literal["cerebras"] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> None:
    """Save an object to a file that ``torch.load`` reads; as ``torch.save``, to any path.

    Under a name that ends in ``.safetensors`` a mapping of names to tensors is saved in that format; parameters come
    back as tensors from there. What the format cannot hold is refused before anything is written.

    What was at the path before is replaced only by a whole checkpoint: if anything goes wrong on the way, it is
    untouched. Missing local folders, and a missing bucket where the credentials allow, are made.

    A Cerebras checkpoint is many objects, so what was at its path is gone when the first of them is written; but there
    is no checkpoint there until the last one is.

    Args:
        obj: tensors, state dicts, and whatever else can be pickled.
        path: a local path or an fsspec URL. An S3 URL has bucket and object path. Every character of a name is part
            of the name.
        format: "cerebras" for the objects below an S3 path that ``cerebras_pytorch`` loads; None for one file.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        callback: gets the total in bytes by ``set_size``, and the bytes written by ``relative_update``. By default
            a progress bar shows on a terminal after a second; ``fsspec.callbacks.NoOpCallback()`` for none.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        FreedTensorError: a ValueError, if the storage of a tensor is too small for it, as where FSDP freed it.
        ValueError: if the format cannot hold the object, of which it names the entry, or load would refuse it; or if
            the path is not on S3 for a format that must be.
        FileExistsError: if a Cerebras checkpoint is to be where an object is.
        OSError: whatever the filesystem raised, as it raised it; PermissionError and others are among it.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats.writer import CheckpointWriter  # only here, as it imports torch

    fs, inner = resolve_path(path, text, storage_options)
    if format is not None:
        _save_as(format, obj, text, fs, inner, callback)
        return
    with report_progress(callback, text) as progress:
        saving = CheckpointWriter(obj, text)
        meter = ProgressMeter(progress, saving.nbytes, estimated=True)
        with atomic_write(fs, inner) as file:
            saving.write(file, advance=meter.advance)
        saving.free()  # the file may have used it until it was closed
        meter.finish()


def _save_as(
    format: str, obj: object, text: str, fs: fsspec.AbstractFileSystem | None, path: str, callback: Callback | None
) -> None:
    from fsspec_csx.formats.cerebras import writer as cerebras_writer
    from fsspec_csx.formats.cerebras.plan import Plan

    if format != "cerebras":
        msg = f"There is no format {format!r} to save in. Pass 'cerebras', or none: the name's suffix tells the others."
        raise ValueError(msg)
    with report_progress(callback, text) as progress:
        plan = Plan(obj)
        meter = ProgressMeter(progress, plan.nbytes)
        fs, path, _ = unwrap_filesystem(fs, path)
        cerebras_writer.write(plan, fs, path, name=redacted(text), advance=meter.advance)
        meter.finish()


def load(
    path: str | os.PathLike[str],
    *,
    keys: Iterable[str] | Callable[[str], bool] | None = None,
    into: Any = None,
    map_location: MAP_LOCATION = None,
    weights_only: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> Any:
    """Load what ``save`` or ``torch.save`` wrote, or a safetensors file; as ``torch.load``, from any path.

    From a folder of ``torch.distributed.checkpoint`` it loads the whole, as ``fsspec_csx.distributed.whole`` does; in
    one that torch's own planner wrote, keys are strings, which ``into`` matches with integers. Of a safetensors
    file, names of tied tensors that ``safetensors.torch.save_model`` left out are there too.

    The checksums that torch files have are checked. Of a file that torch.save wrote in its format of today, the bytes
    of plain tensors go straight into place, and with ``keys`` only those are read that are asked for. Others (of torch
    before 1.6, of sparse or quantized tensors, compressed, or with ``weights_only=False``) are read whole.

    The name of an entry is its path in nested mappings, lists and tuples, joined by dots: ``model.0.weight``.

    Args:
        path: a local path or an fsspec URL, as of ``save``.
        keys: names, each of an entry or of all that is below it, or a function that is asked for the name of each
            entry. The result has the nesting of the whole; lists and tuples close up.
        into: a mapping, such as a state dict, or a list, which is filled and returned: its tensors keep their memory,
            dtypes and devices, and other values are replaced. It must have the same entries as the file, or, with
            ``keys``, those that are asked for.
        map_location: where tensors go, as of ``torch.load``. With ``into`` it has no effect.
        weights_only: if False, the file may run any code: for files of authors whom you trust.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        callback: gets the size in bytes by ``set_size``, and the bytes read by ``relative_update``. By default a
            progress bar shows on a terminal after a second; ``fsspec.callbacks.NoOpCallback()`` for none.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if the file is empty, cut short, damaged, or of another format. Tensors of
            ``into`` may have changed by then.
        CheckpointLimitError: a ValueError, if the file is nested deeper than this package reads.
        UnsafeCheckpointError: a ValueError, if ``weights_only`` and the file, or with ``keys`` an entry that is asked
            for, names what may run code.
        MissingEntryError: a KeyError, if there is nothing of a name in ``keys``.
        MismatchError: a ValueError that lists all that is missing, unexpected or different in ``into``, unchanged yet.
        FreedTensorError: a ValueError, if tensors of ``into`` have no memory, or elements that share some.
        OSError: whatever the filesystem raised, as it raised it; FileNotFoundError and others are among it.

    Warns:
        DtypeCastWarning: if tensors of ``into`` have other dtypes than those of the file.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats import (
        opening,
        reader,  # only here, as these import torch
    )

    fs, inner = resolve_path(path, text, storage_options)
    name = redacted(text)
    with (
        report_progress(callback, text) as progress,
        opening.source(lambda: open_file(fs, inner), *unwrap_filesystem(fs, inner)[:2], name=name) as source,
    ):
        meter = ProgressMeter(progress, source.size)
        source.advance = meter.advance
        if into is None:
            loaded = reader.read(source, name=name, keys=keys, map_location=map_location, weights_only=weights_only)
        else:
            loaded = into
            reader.read_into(source, into, name=name, keys=keys, weights_only=weights_only)
        meter.finish()
    return loaded


def inspect(path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> CheckpointInfo:
    """Tell what a checkpoint holds, from a few short reads; where ``load`` reads the whole file, so does this.

    An object of a class that is not loaded, as that could run code, is shown as ``<argparse.Namespace, not loaded>``.

    Args:
        path: a local path or an fsspec URL, as of ``load``.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if the file is empty, cut short, damaged, or of another format.
        UnsafeCheckpointError: a ValueError, if the file names what may run code.
        OSError: whatever the filesystem raised, as it raised it; FileNotFoundError and others are among it.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats import (
        opening,
        reader,  # only here, as these import torch
    )

    fs, inner = resolve_path(path, text, storage_options)
    name = redacted(text)
    with opening.source(lambda: open_file(fs, inner), *unwrap_filesystem(fs, inner)[:2], name=name) as source:
        return reader.describe(source, name=name)
