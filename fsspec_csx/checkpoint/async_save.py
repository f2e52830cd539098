"""``async_save``: copy the tensors now, and write the checkpoint in the background."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from fsspec.callbacks import Callback, NoOpCallback

from fsspec_csx.checkpoint import save_queue
from fsspec_csx.checkpoint.save_future import SaveFuture, SaveProgress
from fsspec_csx.checkpoint.save_queue import Save
from fsspec_csx.checkpoint.uncompiled import uncompiled
from fsspec_csx.formats.writer import Target
from fsspec_csx.storage.files import resolve_path, unwrap_filesystem
from fsspec_csx.storage.paths import checkpoint_path, redacted


@uncompiled
def async_save(
    obj: object,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    max_shard_size: int | str | None = None,
    local: str | os.PathLike[str] | None = None,
    keep_local: int = 2,
    storage_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
) -> SaveFuture:
    """Save like ``save``, but write the file in the background.

    Everything is copied before this returns, from GPUs into pinned memory, so the object may change afterwards. The
    credentials are those at the time of the call. Each save needs the memory of its tensors until it ends; the next
    save reuses it, see ``release_buffers``.

    Saves to one path run one after the other in the order of the calls; saves to different paths run two at a time.
    With a concurrent ``save`` to the same path, the last to end wins. At exit, the interpreter waits for its saves;
    Ctrl-C stops them. A forked child does not inherit them.

    With ``local``, the checkpoint is written to a local disk first, which frees the copy. Uploads from there follow in
    the order of the saves. The future's ``local`` ends when the local file is complete. If the process is killed later,
    or the upload fails, the next save to the same two folders uploads it, also in another process. Interrupted uploads
    to S3 resume. If two saves have not ended, the call waits for the first. If the disk is full or not writable, the
    checkpoint is written to its path directly, with a warning. A cancelled save may stay on the disk; the next process
    uploads it.

    Args:
        obj, path, format, max_shard_size, storage_options: see ``save``.
        local: a folder on a local disk; the checkpoints of each remote folder have their own folder there. For
            single-file formats (torch and safetensors). ``load(path, local=…)`` reads them.
        keep_local: how many checkpoints of one remote folder to keep there. The oldest are deleted: first those that
            are uploaded, or older than an uploaded one. A warning names each that was not uploaded.
        callback: see ``save``; called in another thread. By default no progress bar shows.

    Returns:
        The save's future. If the save fails and its result is never retrieved, the failure is logged as an error. The
        interpreter then exits with status 120 (even after ``sys.exit(3)``), or 1 if an exception ended it. Children
        that multiprocessing forks keep their own status.

    Raises:
        CheckpointPathError: a ValueError, if the path cannot name a checkpoint.
        CredentialsError: a PermissionError, if the credentials for an S3 path are missing.
        ValueError: if the format cannot hold the object, see ``save``, or ``local`` is used with a format of many
            files.
        RuntimeError: if the main thread has already ended.
        Exception: any error of pickle for an object that cannot be pickled.
    """
    text = checkpoint_path(path)
    from fsspec_csx.formats import registry  # only here, as the formats import torch

    fs, inner = resolve_path(path, text, storage_options)
    if fs is None:
        inner = os.path.join(os.getcwd(), inner)
    behind, place, _ = unwrap_filesystem(fs, inner)
    if connect := getattr(behind, "connect", None):
        connect()  # now, to use the current credentials
    if local is not None:
        from fsspec_csx.checkpoint.local_saves import LocalFirst, open_tier  # only here, as it imports awscrt

        tier, name = open_tier(text, local, keep_local, format, storage_options)
    saving = registry.writer(obj, text, format, copied=True, max_shard_size=max_shard_size)
    future = SaveFuture(SaveProgress(callback or NoOpCallback(), saving.nbytes), local=local is not None)
    place = os.path.realpath(place) if fs is None else place
    target = Target(fs, inner, redacted(text))
    if local is None:
        save_queue.add(Save(future, target, place, saving))
        return future
    with tier.order:
        writer = LocalFirst(tier, name, saving, future)
        save_queue.add(Save(future, target, place, writer, order_key=tier.folder))
    return future


def release_buffers() -> None:
    """Give the memory of earlier copies back to the system, for example after the last ``async_save``.

    The memory of at most two ended saves is kept for later saves: the first use of new memory takes several times as
    long as a copy. It is freed when no save has used it for half an hour. torch keeps pinned memory.
    """
    if "torch" in sys.modules:
        from fsspec_csx.tensors import snapshot

        snapshot.release()
