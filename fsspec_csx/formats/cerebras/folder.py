"""Cerebras checkpoints in folders, as on S3: an object for each tensor, and ``__METADATA__``.

The layout of a folder K, as cerebras_pytorch 2.10 writes it: ``K/NAME`` for each tensor, and ``K/__METADATA__``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

from fsspec_csx.errors import CheckpointError, InvalidCheckpointError
from fsspec_csx.formats.cerebras.leaf import Leaf, TensorLeaf, UnreadValue
from fsspec_csx.formats.cerebras.metadata import LARGEST, NAME, decoded, is_safe, own_entry
from fsspec_csx.formats.cerebras.source import CerebrasSource, LeafSpan
from fsspec_csx.formats.damage import damaged
from fsspec_csx.storage.files import file_size, file_state, open_file
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.threads import run_in_threads
from fsspec_csx.tensors.names import quoted
from fsspec_csx.tensors.source import BareSource

_THREADS = 8


class ObjectRead(NamedTuple):
    """A read of an object of known size from ``start`` into ``memory``, which is contiguous bytes."""

    path: str
    start: int
    memory: memoryview
    size: int


@contextlib.contextmanager
def opened(folder: Folder) -> Iterator[FolderSource | None]:
    """Open the checkpoint in a folder; yield None if there is none.

    Raises:
        InvalidCheckpointError: if the checkpoint is saved again before the block ends.
    """
    try:
        before = file_state(folder.fs, folder.at(NAME))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError):
        yield None
        return
    try:
        yield FolderSource(folder, _read_metadata(folder, before["size"]))
    except CheckpointError:
        _check_unchanged(folder, before)
        raise
    _check_unchanged(folder, before)


def _check_unchanged(folder: Folder, before: Mapping[str, Any]) -> None:
    try:
        changed = file_state(folder.fs, folder.at(NAME)) != before
    except (FileNotFoundError, IsADirectoryError):
        changed = True
    if changed:
        raise InvalidCheckpointError(f"{folder.name} was saved anew while it was read.", "Load it again.")


def _read_metadata(folder: Folder, size: int) -> dict[str, Any]:
    if size > LARGEST:
        raise damaged(folder.name, f"its {NAME} has {size} bytes, more than {LARGEST}")
    if folder.fs is not None:
        return decoded(folder.fs.cat_file(folder.at(NAME)), name=folder.name)
    with folder.open(NAME) as file:
        return decoded(file.read(), name=folder.name)


class FolderSource(CerebrasSource):
    """A Cerebras checkpoint in a folder."""

    def __init__(self, folder: Folder, metadata: dict[str, Any]) -> None:
        super().__init__(folder.name, metadata, _checksums(metadata))
        self._folder = folder
        self._others: dict[str, CerebrasSource | str] = {}
        for key, leaf in self.leaves.items():
            if isinstance(leaf, (TensorLeaf, UnreadValue)) and not is_safe(key):
                raise damaged(folder.name, f"{quoted(key)} is no name of an object in its folder")

    def _followed(self, leaf: TensorLeaf) -> Leaf:
        path, key = leaf.elsewhere or ("", "")
        fs = self._folder.fs
        if fs is None or not path.startswith("s3://") or not has_s3_protocol(fs):
            return super()._followed(leaf)
        there = fs._strip_protocol(path)
        if there not in self._others:
            self._others[there] = self._other(there, path)
        other = self._others[there]
        if isinstance(other, str):
            return UnreadValue(f"tensor of a checkpoint that cannot be read: {other}")
        found = other.leaves.get(key)
        # Links are followed once, so they cannot form a cycle.
        like = isinstance(found, TensorLeaf) and (found.dtype, found.shape) == (leaf.dtype, leaf.shape)
        if not isinstance(found, TensorLeaf) or not like or found.elsewhere is not None:
            return UnreadValue(f"tensor {quoted(key)} of {path!r}, which has none of that dtype and shape")
        return TensorLeaf(found.dtype, found.shape, found.stored, found.compressed, leaf.is_array, (there, key))

    def _other(self, path: str, name: str) -> CerebrasSource | str:
        other = Folder(self._folder.fs, path, name)
        try:
            size = file_state(other.fs, other.at(NAME))["size"]
            return FolderSource(other, _read_metadata(other, size))
        except (CheckpointError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
            return str(error)

    def _object(self, key: str, leaf: Any) -> str:
        """Return the path of a value's object."""
        if isinstance(leaf, TensorLeaf) and leaf.elsewhere is not None:
            return "/".join(leaf.elsewhere)
        return self._folder.at(key)

    def _is_stored(self, name: str, leaf: TensorLeaf) -> bool:
        try:
            return bool(file_state(self._folder.fs, self._object(name, leaf))["size"] == leaf.stored)
        except (FileNotFoundError, IsADirectoryError):
            return False

    def _fetch(self, parts: Sequence[tuple[LeafSpan, int, memoryview]]) -> None:
        self._read_objects(
            [ObjectRead(self._object(at.name, at.leaf), start, memory, at.leaf.nbytes) for at, start, memory in parts]
        )

    def _objects(self, wanted: Sequence[tuple[str, Any]]) -> list[bytes]:
        made = [bytearray(leaf.stored) for _, leaf in wanted]
        parts = [
            ObjectRead(self._object(key, leaf), 0, memoryview(data), leaf.stored)
            for (key, leaf), data in zip(wanted, made, strict=True)
        ]
        advance, self.advance = self.advance, lambda count: None  # the caller counts the unpacked bytes
        try:
            self._read_objects(parts)
        finally:
            self.advance = advance
        return [bytes(data) for data in made]

    def _read_objects(self, wanted: Sequence[ObjectRead]) -> None:
        try:
            fs: Any = self._folder.fs
            of_s3 = hasattr(fs, "readinto_objects")
            sizes = fs.readinto_objects(wanted, self.advance) if of_s3 else self._read_files(wanted)
        except FileNotFoundError as error:
            raise damaged(self.name, f"an object of it is missing ({error})") from error
        for each, size in zip(wanted, sizes, strict=True):
            if size != each.size:
                raise damaged(self.name, f"the object {each.path!r} does not have the {each.size} bytes that it should")

    def _read_files(self, wanted: Sequence[ObjectRead]) -> list[int]:
        """Fill memory from files of the expected size; return the actual sizes."""
        sizes = [0] * len(wanted)

        def read(number: int, advance: Callable[[int], object]) -> None:
            part = wanted[number]
            with open_file(self._folder.fs, part.path) as file:
                sizes[number] = file_size(file)
                if sizes[number] == part.size:
                    BareSource(file, part.size, advance).read([(part.start, part.memory)])

        threads = _THREADS if self._folder.threads else 1
        run_in_threads(read, range(len(wanted)), self.advance, threads=threads, name="fsspec_csx cerebras")
        return sizes


def has_s3_protocol(fs: AbstractFileSystem) -> bool:
    """Return whether a filesystem is S3, of any package."""
    return "s3" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _checksums(metadata: dict[str, Any]) -> dict[str, int]:
    """Return the CRC-32 of values by name, if this package wrote the checkpoint."""
    found = own_entry(metadata, "crc32", dict)
    return {key: crc for key, crc in found.items() if type(crc) is int}
