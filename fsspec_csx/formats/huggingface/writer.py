"""HuggingFaceWriter: saves a state dict in shards, and replaces the old checkpoint of a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats import registry
from fsspec_csx.formats.huggingface.layout import (
    INDEX_SUFFIX,
    LARGEST,
    SUFFIX,
    Index,
    decoded,
    index_of,
    is_index,
    shard_names,
)
from fsspec_csx.formats.safetensors import writer
from fsspec_csx.formats.writer import CheckpointWriter, Target, send_written
from fsspec_csx.storage.folder import Folder, logger
from fsspec_csx.storage.sizes import bytes_of
from fsspec_csx.storage.threads import run_in_threads
from fsspec_csx.tensors.snapshot import copies_of

SHARD_SIZE = "5GB"
_THREADS = 4


class HuggingFaceWriter(CheckpointWriter):
    """Writes a Hugging Face checkpoint: a mapping of names to tensors; tied tensors are stored once.

    ``max_shard_size`` is a number of bytes, or a text such as ``5GB``.
    """

    def __init__(self, obj: Any, *, copied: bool = False, max_shard_size: int | str = SHARD_SIZE) -> None:
        tensors, self._aliases = writer.without_duplicates(writer.named_tensors(obj))
        self._tensors = writer.checked(tensors)
        sizes = {name: each.nbytes for name, each in self._tensors.items()}
        self._parts = split(sizes, max_shard_size)
        self.nbytes = sum(sizes.values())
        if copied:
            self._tensors = copies_of(self._tensors)

    def save(
        self, target: Target, *, advance: Callable[[int], object], commit: Callable[[], object] = lambda: None
    ) -> None:
        replacing = FolderReplacement(target, self._parts)

        def write_one(number: int, advance: Callable[[int], object]) -> None:
            parts = writer.file_of({each: self._tensors[each] for each in self._parts[number]})
            with replacing.folder.creating(replacing.names[number]) as file:
                parts.write(file, advance=advance)
                send_written(file, lambda: advance(0))

        with replacing:
            threads = _THREADS if replacing.folder.threads else 1
            run_in_threads(write_one, range(len(self._parts)), advance, threads=threads, name="fsspec_csx huggingface")
            commit()
            replacing.publish(self._aliases, self.nbytes)

    def free(self) -> None:
        self._tensors = {}


class FolderReplacement:
    """Replaces the checkpoint of a folder: writes new shards first, then the index, then removes the old files.

    As a context manager, it removes the new shards if its block fails before the index is written.

    Args:
        target: the folder, or the index in it.
        parts: the names of the tensors in each shard.
    """

    def __init__(self, target: Target, parts: Sequence[Sequence[str]]) -> None:
        place, self._stem = index_of(target.path)
        self._is_folder = place == target.path
        self.folder = Folder(target.fs, place, target.name)
        self.names = shard_names(self._stem, len(parts))
        self._parts = parts
        self._writes_index = False
        self._present: list[str] = []

    def __enter__(self) -> FolderReplacement:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # listing may be forbidden
            self._present = self.folder.names()
        if self._is_folder and any(layout.manifest in self._present for layout in registry.layouts()):
            msg = f"{self.folder.name} has a checkpoint of another format, which load prefers. Delete it first."
            raise FileExistsError(msg)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if kind is not None and not self._writes_index:
            self.folder.remove(self.names)

    def publish(self, aliases: Mapping[str, str], total_size: int) -> int:
        """Write the index, which makes the new shards visible, and remove the files that it replaces.

        Args:
            aliases: names of duplicate tensors, each with the name that is stored.
            total_size: the size of all tensors in bytes.

        Returns:
            The size of the index in bytes.
        """
        manifest = f"{self._stem}{INDEX_SUFFIX}"
        old = self._replaced_shards(manifest)
        weight_map = {tensor: shard for shard, part in zip(self.names, self._parts, strict=True) for tensor in part}
        text = Index(weight_map, aliases, {"total_size": total_size}).encoded()
        self._writes_index = True  # after an error it may have been written
        with self.folder.atomic_write(manifest) as file:
            file.write(text)
        self._remove_single(f"{self._stem}{SUFFIX}")
        self.folder.remove(sorted(old))
        return len(text)

    def _remove_single(self, name: str) -> None:
        """Remove an old checkpoint of one file, which transformers would prefer."""
        with contextlib.suppress(FileNotFoundError):
            fs, path = self.folder.fs, self.folder.at(name)
            os.unlink(path) if fs is None else fs.rm_file(path)

    def _replaced_shards(self, manifest: str) -> set[str]:
        """Return the shards that only the old index names. It may name any file: return only safetensors files."""
        others = [name for name in self._present if is_index(name) and name != manifest]
        try:
            old = self._shards(manifest)
            kept = {shard for name in others for shard in self._shards(name)} if old else set()
        except (CheckpointError, PermissionError) as error:  # the user may have no permission to read
            logger.warning("The shards of the old checkpoint stay: an index cannot be read: %s", error)
            return set()
        return {name for name in old - kept - set(self.names) if name.endswith(SUFFIX)}

    def _shards(self, manifest: str) -> set[str]:
        try:
            with self.folder.open(manifest) as file:
                return set(decoded(file.read(LARGEST), self.folder.name).shards)
        except FileNotFoundError:
            return set()


def split(sizes: Mapping[str, int], limit: int | str = SHARD_SIZE) -> list[list[str]]:
    """Divide tensors, given by size, among shards in order; a tensor above the limit gets its own shard."""
    most = bytes_of(limit, "max_shard_size")
    parts: list[list[str]] = []
    taken = 0
    for name, size in sizes.items():
        if not parts or taken + size > most:
            parts.append([])
            taken = 0
        parts[-1].append(name)
        taken += size
    return parts
