"""stream: the tensors of a checkpoint one after the other, in bounded memory."""

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

    The next tensors are read while the caller works on one. Besides what the caller keeps, some 256 MiB are in memory,
    or a few tensors that are larger. Tensors that share memory stay until the last of them was given. Files that
    ``load`` reads completely (torch before 1.6, compressed, with sparse or quantized tensors) are in memory as a whole.

    When the loop is left early, the reading ahead ends and the file is closed.

    Args:
        path: a checkpoint of any format, see ``load``.
        keys: see ``load``. Names also give the order of the tensors; otherwise it is that of the checkpoint.
        device: where the tensors go; by default the CPU. Copies to a GPU go through pinned memory, on a stream of their
            own, and overlap with the reading.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Returns:
        An iterator of dotted names, as those of ``inspect``, and tensors. Values that are no tensors are left out, and
        parameters are tensors.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if the file is empty, truncated, damaged, or of another format; while the
            iterator is used, if the bytes of a tensor do not have their checksum. It names the tensor.
        MissingEntryError: a KeyError, if the checkpoint has no entry of a name in ``keys``; before any tensor is read.
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
    """None when the checkpoint is open, and then the names and tensors."""
    from fsspec_csx.formats import opening, tensor_iterator  # only here, as these import torch

    with opening.checkpoint(path, storage_options) as (source, name):
        tensors = tensor_iterator.TensorIterator(source, name=name, keys=keys, device=device)
        yield None
        yield from tensors
