"""``stream``: read the tensors of a checkpoint one after the other, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def stream(
    path: str | os.PathLike[str],
    keys: Iterable[str] | Callable[[str], bool] | None = None,
    device: torch.device | str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read the tensors of a checkpoint one after the other, for example to fill a model module by module.

    The next tensors are read while the caller works on one. Besides what the caller keeps, about 256 MiB are in memory,
    or a few larger tensors. Tensors that share memory stay until the last of them was yielded. Files that ``load``
    reads completely (torch before 1.6, compressed, with sparse or quantized tensors) are in memory as a whole.

    Leaving the loop early ends the reading ahead, and closes the file.

    Args:
        path: a checkpoint of any format, see ``load``.
        keys: see ``load``. Names also determine the order of the tensors; by default it is that of the checkpoint.
        device: where the tensors go; by default the CPU. Copies to a GPU go through pinned memory, on a separate
            stream, and overlap with the reading.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Returns:
        An iterator of tensors with their dotted names, as in ``inspect``. Other values are left out, and parameters
        become plain tensors.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if the file is empty, truncated, damaged, or of another format. The
            iterator raises it if the checksum of a tensor, which it names, is wrong.
        MissingEntryError: a KeyError, if the checkpoint has no entry with a name in ``keys``; no tensor is read then.
        OSError: any error of the filesystem, unchanged, such as FileNotFoundError.
    """
    tensors = _tensors(path, keys, device, storage_options)
    next(tensors)  # opens the checkpoint
    return tensors


def _tensors(
    path: str | os.PathLike[str],
    keys: Iterable[str] | Callable[[str], bool] | None,
    device: torch.device | str | None,
    storage_options: Mapping[str, Any] | None,
) -> Generator[Any, None, None]:
    """Yield None when the checkpoint is open, and then the names and tensors."""
    from fsspec_csx.formats import opening, tensor_iterator  # only here, as these import torch

    with opening.checkpoint(path, storage_options) as (source, name):
        tensors = tensor_iterator.TensorIterator(source, name=name, keys=keys, device=device)
        yield None
        yield from tensors
