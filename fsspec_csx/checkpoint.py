"""save, load and copy: checkpoints at any path that fsspec knows, whole or not at all."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

import fsspec
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from fsspec_csx.atomic import replacing
from fsspec_csx.paths import checkpoint_path, is_local, redacted
from fsspec_csx.progress import Meter, reporting

_PIECE = 16 * 2**20
# In bytes. torch reads a short header before each tensor, far from the last; most of a long read-ahead would be lost.
_READ_AHEAD = 2**20

if TYPE_CHECKING:
    from torch.serialization import MAP_LOCATION


def save(
    obj: object,
    path: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> None:
    """Save an object to a file that ``torch.load`` reads; as ``torch.save``, to any path.

    What was at the path before is replaced only by a whole checkpoint: if anything goes wrong on the way, it is
    untouched. Missing local folders, and a missing bucket where the credentials allow, are made.

    Args:
        obj: tensors, state dicts, and whatever else can be pickled.
        path: a local path or an fsspec URL. An S3 URL has bucket and object path. Every character of a name is part
            of the name.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        callback: gets the total in bytes by ``set_size``, and the bytes written by ``relative_update``. By default
            a progress bar shows on a terminal after a second; ``fsspec.callbacks.NoOpCallback()`` for none.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        OSError: whatever the filesystem raised, as it raised it; PermissionError and others are among it.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats import torch_zip  # only here, as it imports torch

    fs, inner = _locate(path, text, storage_options)
    with reporting(callback, text) as progress:
        meter = Meter(progress, torch_zip.tensor_bytes(obj), estimated=True)
        with replacing(fs, inner) as file:
            torch_zip.write(obj, file, advance=meter.advance)
        meter.finish()


def load(
    path: str | os.PathLike[str],
    *,
    map_location: MAP_LOCATION = None,
    weights_only: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> Any:
    """Load what ``save`` or ``torch.save`` wrote; as ``torch.load``, from any path.

    Args:
        path: a local path or an fsspec URL, as of ``save``.
        map_location: where tensors go, as of ``torch.load``.
        weights_only: if False, the file may run any code: for files of authors whom you trust.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        callback: gets the size in bytes by ``set_size``, and the bytes read by ``relative_update``. By default a
            progress bar shows on a terminal after a second; ``fsspec.callbacks.NoOpCallback()`` for none.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if the file is empty, cut short, damaged, or of another format.
        UnsafeCheckpointError: a ValueError, if ``weights_only`` and the file names what may run code.
        OSError: whatever the filesystem raised, as it raised it; FileNotFoundError and others are among it.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats import torch_zip  # only here, as it imports torch

    fs, inner = _locate(path, text, storage_options)
    with reporting(callback, text) as progress, _opened(fs, inner) as file:
        size = _size(file)
        meter = Meter(progress, size)
        loaded = torch_zip.read(
            file,
            name=redacted(text),
            size=size,
            advance=meter.advance,
            map_location=map_location,
            weights_only=weights_only,
        )
        meter.finish()
    return loaded


def copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    callback: Callback | None = None,
) -> str:
    """Copy a checkpoint, byte for byte, between any two paths.

    Args:
        source: a local path or an fsspec URL, as of ``load``.
        target: the like; one that ends in a slash takes the source's name.
        overwrite: whether a checkpoint at the target may be replaced.
        callback: as of ``load``.

    Returns:
        The path that was written.

    Raises:
        CheckpointPathError: a ValueError, if a path cannot name a checkpoint.
        FileExistsError: if there is something at the target, unless ``overwrite``.
        OSError: whatever a filesystem raised, as it raised it.
    """
    origin = checkpoint_path(source)
    place = os.fspath(target)
    text = checkpoint_path(place + origin.rpartition("/")[2] if place.endswith("/") else target)
    source_fs, source_path = _locate(source, origin, None)
    target_fs, target_path = _locate(target, text, None)
    if not overwrite and _exists(target_fs, target_path):
        msg = f"{redacted(text)} exists already. Choose another name, or allow it to be overwritten."
        raise FileExistsError(msg)
    with reporting(callback, text) as progress, _opened(source_fs, source_path) as file:
        meter = Meter(progress, _size(file))
        with replacing(target_fs, target_path) as written:
            while piece := file.read(_PIECE):
                written.write(piece)
                meter.advance(len(piece))
        meter.finish()
    return text


def _exists(fs: fsspec.AbstractFileSystem | None, path: str) -> bool:
    if fs is None:
        return os.path.lexists(path)
    _forget_listings(fs, path)
    return bool(fs.exists(path))


def _locate(
    path: str | os.PathLike[str], text: str, options: Mapping[str, Any] | None
) -> tuple[fsspec.AbstractFileSystem | None, str]:
    """The filesystem and the path on it; None for this machine's own."""
    if is_local(path):
        return None, text
    # fsspec adds to the options of each link of a chained URL in place.
    own = {key: dict(value) if isinstance(value, dict) else value for key, value in (options or {}).items()}
    fs, inner = fsspec.url_to_fs(text, **own)
    return (None if isinstance(fs, LocalFileSystem) else fs), inner


def _opened(fs: fsspec.AbstractFileSystem | None, path: str) -> IO[bytes]:
    if fs is None:
        return open(path, "rb")
    _forget_listings(fs, path)
    file: IO[bytes] = fs.open(path, "rb", block_size=_READ_AHEAD)
    return file


def _forget_listings(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Someone else may have written the file since its folder was listed."""
    invalidate = getattr(fs, "invalidate_cache", None)
    if invalidate is None:
        return
    try:
        inspect.signature(invalidate).bind(path)
    except TypeError:  # some filesystems forget all or nothing
        invalidate()
        return
    invalidate(path)
    invalidate(fs._parent(path))


def _size(file: IO[bytes]) -> int:
    """In bytes; leaves the file at its start."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    return size
