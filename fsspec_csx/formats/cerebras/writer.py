"""Writes Cerebras checkpoints to S3: tensors side by side, and what makes them a checkpoint last."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from zlib_ng import zlib_ng

from fsspec_csx.formats.cerebras import metadata as cerebras_metadata
from fsspec_csx.formats.cerebras.folder import metadata_of, objects_of, protocols
from fsspec_csx.formats.cerebras.leaf import shown
from fsspec_csx.formats.cerebras.plan import Plan
from fsspec_csx.formats.cerebras.source import check_byte_order
from fsspec_csx.tensors.source import memory_at

_AT_A_TIME = 10
_DELETED_AT_ONCE = 1000  # the most of a request
_LONGEST = 1024


def write(
    plan: Plan,
    fs: AbstractFileSystem | None,
    path: str,
    *,
    name: str,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Write a checkpoint.

    The objects of a former one at the same path are replaced one by one, so it cannot stay until the new one is whole.
    But at no time is there a checkpoint of objects of both: the first thing to go is what makes the former one a
    checkpoint, and what makes the new one one is written when all else is there. If this is broken off in between,
    neither is there, and every reader says so.

    Args:
        plan: what it is made of.
        fs: an S3 filesystem.
        path: on it.
        name: what errors call the checkpoint.
        advance: called many times with the number of bytes that were written.

    Raises:
        ValueError: if the filesystem is not S3, or a name is too long for it.
        FileExistsError: if there is an object of that very path.
        NotImplementedError: on a big-endian machine.
        OSError: what the filesystem raised.
    """
    check_byte_order()
    if fs is None or "s3" not in protocols(fs):
        msg = f"Cerebras checkpoints can be written to S3 alone, and {name} is not there. Save without a format."
        raise ValueError(msg)
    room = _LONGEST - len(path.partition("/")[2].encode()) - 1
    if long := [key for key in plan.bodies if len(key.encode()) > room]:
        msg = f"S3 has no names of more than {_LONGEST} bytes, which {shown(long[0])} below {name} takes. Shorten it."
        raise ValueError(msg)
    former = objects_of(fs, path)
    if fs.isfile(path):
        msg = f"There is an object {name}, and a Cerebras checkpoint is a folder. Delete it, or choose another name."
        raise FileExistsError(msg)
    fs.pipe_file(metadata_of(path), cerebras_metadata.encoded(plan.metadata()))
    wanted = {metadata_of(path), *(f"{path}/{key}" for key in plan.bodies)}
    left = [each for each in former if each not in wanted]
    for start in range(0, len(left), _DELETED_AT_ONCE):
        # Not rm: it takes '*', '?' and '[' in a name for a pattern.
        sync(fs.loop, fs._bulk_delete, left[start : start + _DELETED_AT_ONCE])
    crc32 = _write_bodies(plan, fs, path, advance)
    fs.pipe_file(metadata_of(path), cerebras_metadata.encoded(plan.metadata(crc32)))


def _write_bodies(plan: Plan, fs: AbstractFileSystem, path: str, advance: Callable[[int], object]) -> dict[str, int]:
    """Write the tensors; the CRC-32 of the bytes of each."""

    def send(key: str) -> int:
        tensor = plan.bodies[key].detach().resolve_conj().resolve_neg().contiguous().cpu()
        memory = memory_at(tensor.data_ptr(), tensor.nbytes, tensor)
        fs.pipe_file(f"{path}/{key}", memory, Metadata={"metadata": plan.header(key)})
        return int(zlib_ng.crc32(memory))

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
