"""``save``, ``load``, ``stream`` and ``inspect`` for checkpoints at any fsspec path."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fsspec.callbacks import Callback, NoOpCallback

from fsspec_csx.checkpoint.save_future import SaveFuture, SaveProgress
from fsspec_csx.checkpoint.uncompiled import uncompiled
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.files import resolve_path
from fsspec_csx.storage.paths import checkpoint_path, redacted
from fsspec_csx.storage.progress import ProgressMeter, report_progress

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup
    from torch.serialization import MAP_LOCATION

    from fsspec_csx.formats.checkpoint_info import CheckpointInfo


@uncompiled
def save(
    obj: object,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    local: str | os.PathLike[str] | None = None,
    keep_local: int = 2,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> None:
    """Save an object to a file that ``torch.load`` reads; like ``torch.save``, but to any path.

    A path that ends in ``.safetensors`` selects that format: a mapping of names to tensors. Parameters load as plain
    tensors. An object that the format cannot hold is refused before anything is written.

    The format ``huggingface`` writes a folder that transformers and diffusers read: safetensors files, and last their
    index, ``model.safetensors.index.json``. A path that ends in ``.safetensors.index.json`` selects it too. Tied
    tensors are stored once. After the index is written, the files of the old checkpoint are removed: those that the old
    index names, and a single ``model.safetensors``.

    The old file is replaced only by a complete new one; after an error it is untouched. Missing local folders are
    created, and so is a missing bucket if the credentials allow it. A Cerebras checkpoint consists of many objects: the
    first write clears its path, which holds no checkpoint until the last object is written.

    With ``local``, ``save`` writes the checkpoint to a local disk first and uploads it from there before it returns. If
    the upload fails or Ctrl-C ends it, ``save`` raises the error, but the local copy is complete: ``load(path,
    local=…)`` reads it, and the next save to the same two folders uploads it, also in another process. A full or locked
    disk only causes a warning; see ``async_save``.

    Args:
        obj: tensors, state dicts, and any other objects that can be pickled.
        path: a local path or an fsspec URL. An S3 URL has bucket and object path. Every character of a name is literal.
        format: ``torch``, ``safetensors``, ``huggingface``, or ``cerebras`` for the objects below an S3 path that
            ``cerebras_pytorch`` loads. By default the suffix of the path decides; ``torch`` if it is unknown.
        max_shard_size: the maximum size of a file of the format huggingface, in bytes or as text; by default ``5GB``.
        local: a folder on a local disk, see ``async_save``; for single-file formats (torch and safetensors).
        keep_local: how many checkpoints of one remote folder to keep there, see ``async_save``.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        callback: receives the total in bytes by ``set_size``, and the bytes written by ``relative_update``; with
            ``local``, the bytes uploaded. By default a terminal shows a progress bar after a second;
            ``fsspec.callbacks.NoOpCallback()`` shows none.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        FreedTensorError: a ValueError, if the storage of a tensor is too small for it, for example freed by FSDP.
        ValueError: if the format cannot hold an entry, or no ``load`` could read it; the message names the entry. Also
            if the format requires S3 and the path is elsewhere, or ``local`` is used with a format of many files.
        FileExistsError: if an object has the path of a Cerebras checkpoint.
        OSError: any error of the filesystem, unchanged, such as PermissionError.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats import registry  # imports torch

    fs, inner = resolve_path(path, text, storage_options)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(report_progress(callback, text))
        if local is not None:
            from fsspec_csx.checkpoint.local_saves import LocalFirst, open_tier  # imports awscrt

            tier, name = open_tier(text, local, keep_local, format, storage_options)
        saving = registry.writer(obj, text, format, max_shard_size=max_shard_size)
        if local is not None:
            future = SaveFuture(SaveProgress(NoOpCallback(), 0), local=True)  # other threads wait for this save
            future.waiting_thread = threading.get_ident()
            stack.callback(future.end, None, text)
            saving = LocalFirst(tier, name, saving, future)
        meter = ProgressMeter(progress, saving.nbytes, estimated=True)
        saving.save(Target(fs, inner, redacted(text)), advance=meter.advance)
        saving.free()  # until the file is closed, it may use the memory
        meter.finish()


def load(
    path: str | os.PathLike[str],
    *,
    keys: Iterable[str] | Callable[[str], bool] | None = None,
    into: Any = None,
    map_location: MAP_LOCATION = None,
    weights_only: bool = True,
    local: str | os.PathLike[str] | None = None,
    group: ProcessGroup | None = None,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> Any:
    """Load a file of ``save``, ``torch.save`` or safetensors; like ``torch.load``, but from any path.

    A Hugging Face folder, or the path of its index, loads as one state dict: the tensors of ``model.safetensors``, or
    of the files that the index names. With ``keys`` only the files with those tensors are read. Tied tensors that
    ``safetensors.torch.save_model`` left out are restored.

    A folder of ``torch.distributed.checkpoint`` also loads as one state dict, see ``fsspec_csx.distributed.whole``. If
    torch's own planner wrote it, its keys are strings, which ``into`` matches with integers.

    The checksum of each tensor is verified. Safetensors files have none: one that is read whole from S3, without
    ``keys`` or ``group``, is compared with the object's checksum.

    Plain tensors of files that torch 1.6 or later wrote are read directly into their memory, and with ``keys`` only the
    selected ones. Other files (older, compressed, with sparse or quantized tensors, or with ``weights_only=False``) are
    read completely.

    The name of an entry is its path in nested mappings, lists and tuples, joined by dots: ``model.0.weight``.

    With ``group``, the processes of a group read the checkpoint from storage only once: each process reads a share of
    the bytes, sends it to the others, and returns the whole checkpoint. All processes see one version of the
    checkpoint, and an error in one is raised in all. Every process of the group calls ``load`` with the same arguments.
    Devices may differ in number but not in kind. Tensors of ``into`` may not differ in shape, strides or dtype.

    Args:
        path: a local path or an fsspec URL, see ``save``.
        keys: names, each of an entry or of all entries below it, or a function that selects entries by name.
            The result has the nesting of the file; lists and tuples are re-indexed without gaps.
        into: a mapping, such as a state dict, or a list to fill and return. Its tensors keep their memory, dtypes and
            devices; other values are replaced. Its entries must be those of the file, or of ``keys``.
        map_location: the device of tensors, see ``torch.load``. It has no effect with ``into``.
        weights_only: if False, the file may run any code: only for files of authors whom you trust.
        local: the folder given to ``save`` or ``async_save``. The local file is read if its bytes are those that were
            saved, and the remote file is the same or does not exist yet.
        group: processes that load together, such as ``torch.distributed.group.WORLD``; by default only this process.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.
        callback: receives the size in bytes by ``set_size``, and the bytes read by ``relative_update``. By default a
            terminal shows a progress bar after a second; ``fsspec.callbacks.NoOpCallback()`` shows none. In a group,
            only the first process shows the bar.

    Returns:
        The object of the file, or ``into``.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if the file is empty, truncated, damaged, or of another format. Tensors of
            ``into`` may have changed.
        CheckpointLimitError: a ValueError, if the file is nested too deeply.
        UnsafeCheckpointError: a ValueError, if ``weights_only`` and a selected entry could run code.
        MissingEntryError: a KeyError, if the file has no entry with a name in ``keys``.
        MismatchError: a ValueError that lists every missing, unexpected or mismatched entry; ``into`` is unchanged.
        FreedTensorError: a ValueError, if tensors of ``into`` have no memory, or their elements overlap.
        ValueError: if the processes of ``group`` pass different arguments, or ``local`` is given with ``group``.
        LostProcessError: a RuntimeError, if another process of ``group`` has ended, or does not respond in time.
        OSError: any error of the filesystem, unchanged, such as FileNotFoundError.

    Warns:
        DtypeCastWarning: if tensors of ``into`` have other dtypes than those of the file.
    """
    if local is not None and group is not None:
        msg = "load takes local or group, not both: a local file is of one machine. Leave one of them out."
        raise ValueError(msg)
    if local is not None:
        from fsspec_csx.checkpoint import local_saves  # imports awscrt

        path = checkpoint_path(path)
        found = local_saves.find(path, local, storage_options)
        if found != path:
            with contextlib.suppress(FileNotFoundError):  # a newer save may have deleted it meanwhile
                return load(
                    found, keys=keys, into=into, map_location=map_location, weights_only=weights_only, callback=callback
                )
    with contextlib.ExitStack() as stack:
        processes = None
        if group is not None:
            from fsspec_csx.group.processes import together  # imports torch

            processes = stack.enter_context(together(group))
        text = checkpoint_path(path)
        from fsspec_csx.formats import opening, reader  # these import torch

        if processes is not None:
            keys = keys if keys is None or callable(keys) or isinstance(keys, str) else list(keys)
            into_it = "" if into is None else " into tensors"
            processes.gather(f"load {_part(keys)} of {redacted(text)}{into_it}, weights_only={bool(weights_only)}")
            callback = NoOpCallback() if callback is None and processes.rank else callback
        progress = stack.enter_context(report_progress(callback, text))
        source, name = stack.enter_context(opening.checkpoint(path, storage_options, processes))
        meter = ProgressMeter(progress, source.size)
        source.advance = meter.advance
        if into is None:
            loaded = reader.read(source, name=name, keys=keys, map_location=map_location, weights_only=weights_only)
        else:
            loaded = into
            reader.read_into(source, into, name=name, keys=keys, weights_only=weights_only)
        meter.finish()
    return loaded


def _part(keys: Iterable[str] | Callable[[str], bool] | None) -> str:
    from fsspec_csx.tensors.names import shown  # imports torch

    if keys is None:
        return "all"
    return "a chosen part" if callable(keys) else shown(sorted(set(keys), key=str))


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
            iterator raises it if the checksum of a tensor, which it names, is wrong; at its end, if all tensors of
            safetensors files differ from the server's checksum.
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


def inspect(path: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> CheckpointInfo:
    """Describe the contents of a checkpoint, from a few short reads where ``load`` need not read the whole file.

    An object of a class that could run code is not loaded; it is shown as ``<argparse.Namespace, not loaded>``.

    Args:
        path: a local path or an fsspec URL, see ``load``.
        storage_options: arguments for the filesystem, such as ``{"profile": "my-profile"}``.

    Returns:
        The format, the size and the entries.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        InvalidCheckpointError: a ValueError, if the file is empty, truncated, damaged, or of another format.
        UnsafeCheckpointError: a ValueError, if the file could run code.
        OSError: any error of the filesystem, unchanged, such as FileNotFoundError.
    """
    from fsspec_csx.formats import opening, registry  # these import torch

    with opening.checkpoint(path, storage_options) as (source, name):
        return registry.format_of(source).info(source, name)
