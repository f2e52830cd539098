"""CerebrasWriter: writes Cerebras checkpoints to S3: first the tensors, and last the metadata."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import sync

from fsspec_csx.formats import check_little_endian
from fsspec_csx.formats.cerebras import metadata as cerebras_metadata
from fsspec_csx.formats.cerebras.folder import is_s3
from fsspec_csx.formats.cerebras.layout import LAYOUT
from fsspec_csx.formats.cerebras.plan import Plan
from fsspec_csx.formats.folder_layout import OwnFiles
from fsspec_csx.formats.writer import CheckpointWriter, Target
from fsspec_csx.storage.files import unwrap_filesystem
from fsspec_csx.storage.folder import Folder
from fsspec_csx.tensors.crc32 import crc32_of
from fsspec_csx.tensors.names import quoted
from fsspec_csx.tensors.tiling import memory

logger = logging.getLogger("fsspec_csx")

_AT_A_TIME = 10
_DELETED_AT_ONCE = 1000  # the most in one request
_LONGEST = 1024


class CerebrasWriter(CheckpointWriter):
    """Writes an object as a Cerebras checkpoint.

    The objects of the old checkpoint at the path are replaced one by one, so it cannot stay until the new one is
    complete. But the old and the new objects never form a checkpoint together: the first write marks the metadata as
    unfinished, and the last write completes it. If the save stops in between, no checkpoint is there, and every reader
    reports that.
    """

    def __init__(self, obj: Any, *, copied: bool = False) -> None:
        self._plan: Plan | None = Plan(obj)
        if copied:
            self._plan.copy()
        self.nbytes = self._plan.nbytes

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        """Write the checkpoint; ``commit`` is called before the last write, which makes the objects a checkpoint.

        Raises:
            ValueError: if the filesystem is not S3, or a name is too long for S3.
            FileExistsError: if an object has the path itself.
        """
        assert self._plan is not None
        check_little_endian(*cerebras_metadata.LITTLE_ENDIAN)
        fs, path, _ = unwrap_filesystem(target.fs, target.path)
        name = target.name
        check_place(fs, name)
        plan = self._plan
        room = _LONGEST - len(path.partition("/")[2].encode()) - 1
        if long := [key for key in plan.bodies if len(key.encode()) > room]:
            msg = f"S3 has no names of more than {_LONGEST} bytes, which {quoted(long[0])} below {name} takes."
            raise ValueError(f"{msg} Shorten it.")
        _clear(plan, fs, path, name)
        crc32 = _write_bodies(plan, fs, path, advance)
        commit()
        fs.pipe_file(f"{path}/{cerebras_metadata.NAME}", cerebras_metadata.encoded(plan.finished(crc32)))

    def free(self) -> None:
        """Release the object or its copy."""
        self._plan = None


def check_place(fs: AbstractFileSystem | None, name: str) -> None:
    """Raise a ValueError for filesystems other than S3."""
    if fs is None or not is_s3(fs):
        msg = f"Cerebras checkpoints can be written to S3 alone, and {name} is not there. Save without a format."
        raise ValueError(msg)


def _clear(plan: Plan, fs: AbstractFileSystem, path: str, name: str) -> None:
    """Mark the checkpoint at the path as unfinished, and delete the objects that will not be replaced."""
    held = _objects_below(fs, path)
    if fs.isfile(path):
        msg = f"There is an object {name}, and a Cerebras checkpoint is a folder. Delete it, or choose another name."
        raise FileExistsError(msg)
    former = LAYOUT.own_files(Folder(fs, path, name), held) if cerebras_metadata.NAME in held else OwnFiles([], [])
    others = {*held}.difference(former.names)
    if (held and not former.names) or not others.isdisjoint(plan.bodies) or LAYOUT.is_below_other(held, plan.bodies):
        msg = f"{name} has other files, which a Cerebras checkpoint would replace. Delete them, or choose another name."
        raise FileExistsError(msg)
    if former.note:
        logger.warning("%s is replaced, and %s. They stay.", name, former.note)
    fs.pipe_file(f"{path}/{cerebras_metadata.NAME}", cerebras_metadata.encoded(plan.begun(former.names)))
    wanted = {cerebras_metadata.NAME, *plan.bodies}
    left = [f"{path}/{each}" for each in former.names if each not in wanted]
    for start in range(0, len(left), _DELETED_AT_ONCE):
        # Not rm: it expands '*', '?' and '[' in names.
        sync(fs.loop, fs._bulk_delete, left[start : start + _DELETED_AT_ONCE])


def _objects_below(fs: AbstractFileSystem, path: str) -> list[str]:
    """Return the names of all objects below a path."""
    fs.invalidate_cache()
    folder = f"{path}/"
    try:
        return [each.removeprefix(folder) for each in fs.find(path) if each.startswith(folder)]
    except FileNotFoundError:
        return []


def _write_bodies(plan: Plan, fs: AbstractFileSystem, path: str, advance: Callable[[int], object]) -> dict[str, int]:
    """Write the tensors; return the CRC-32 of each."""

    def send(key: str) -> int:
        tensor = plan.bodies[key].detach().resolve_conj().resolve_neg().contiguous().cpu()
        data = memory(tensor)
        fs.pipe_file(f"{path}/{key}", data, Metadata={"metadata": plan.header(key)})
        return crc32_of(data)

    threads = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="fsspec_csx cerebras")
    try:
        sent = {threads.submit(send, key): key for key in plan.bodies}
        found = {}
        for future in as_completed(sent):
            found[sent[future]] = future.result()
            advance(plan.bodies[sent[future]].nbytes)
    finally:
        threads.shutdown(cancel_futures=True)
    return found
