"""Cerebras checkpoints in folders, as on S3: an object for each tensor, and ``__METADATA__``.

The layout of a folder K, as cerebras_pytorch 2.10 writes it: ``K/NAME`` for each tensor, and ``K/__METADATA__``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem

from fsspec_csx.errors import CheckpointError, InvalidCheckpointError
from fsspec_csx.formats.cerebras import metadata as cerebras_metadata
from fsspec_csx.formats.cerebras.leaf import Leaf, TensorLeaf, UnreadValue
from fsspec_csx.formats.cerebras.metadata import damaged, is_safe, own_entry
from fsspec_csx.formats.cerebras.source import CerebrasSource, LeafSpan
from fsspec_csx.storage.files import file_size
from fsspec_csx.storage.folder import Folder
from fsspec_csx.storage.progress import run_in_threads
from fsspec_csx.tensors.names import quoted
from fsspec_csx.tensors.source import BareSource

# The details of a file that change with its content.
_CHANGING = ("ETag", "VersionId", "LastModified", "size", "ino", "mtime", "created")
_THREADS = 8


class ObjectRead(NamedTuple):
    """A read of an object of known size from ``start`` into ``memory``, which is contiguous bytes."""

    path: str
    start: int
    memory: memoryview
    size: int


def objects_of(fs: AbstractFileSystem, path: str) -> list[str]:
    """List all objects below a path in the order to copy them: ``__METADATA__`` last.

    Delete them in reverse order: without ``__METADATA__`` the rest is no checkpoint.
    """
    fs.invalidate_cache()
    folder, last = f"{path.rstrip('/')}/", metadata_of(path)
    try:
        found = [each for each in fs.find(path) if each.startswith(folder)]
    except FileNotFoundError:
        found = []
    return sorted(found, key=lambda each: (each == last, each))


@contextlib.contextmanager
def opened(fs: AbstractFileSystem, path: str, *, name: str) -> Iterator[FolderSource | None]:
    """Open the checkpoint in a folder; yield None if there is none.

    Raises:
        InvalidCheckpointError: if the checkpoint is saved again before the block ends.
    """
    try:
        before = _info(fs, path)
    except PermissionError:
        before = None
    if before is None:
        yield None
        return
    try:
        yield FolderSource(fs, path, _read_metadata(fs, path, before["size"], name), name=name)
    except CheckpointError:
        _check_unchanged(fs, path, before, name)
        raise
    _check_unchanged(fs, path, before, name)


def _check_unchanged(fs: AbstractFileSystem, path: str, before: Any, name: str) -> None:
    after = _info(fs, path) or {}
    if any(after.get(key) != before.get(key) for key in _CHANGING):
        raise InvalidCheckpointError(f"{name} was saved anew while it was read.", "Load it again.")


def _info(fs: AbstractFileSystem, path: str) -> Any:
    """Return the filesystem's details of a checkpoint's metadata; None if there is none."""
    fs.invalidate_cache()
    try:
        info = fs.info(metadata_of(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info if info["type"] == "file" else None


def _read_metadata(fs: AbstractFileSystem, path: str, size: int, name: str) -> dict[str, Any]:
    if size > cerebras_metadata.LARGEST:
        raise damaged(name, f"its {cerebras_metadata.NAME} has {size} bytes, more than {cerebras_metadata.LARGEST}")
    return cerebras_metadata.decoded(fs.cat_file(metadata_of(path)), name=name)


class FolderSource(CerebrasSource):
    """A Cerebras checkpoint in a folder."""

    def __init__(self, fs: Any, path: str, metadata: dict[str, Any], *, name: str) -> None:
        super().__init__(name, metadata, _checksums(metadata))
        self._fs = fs
        self._path = path
        self._others: dict[str, CerebrasSource | str] = {}
        for key, leaf in self.leaves.items():
            if isinstance(leaf, (TensorLeaf, UnreadValue)) and not is_safe(key):
                raise damaged(name, f"{quoted(key)} is no name of an object in its folder")

    def _followed(self, leaf: TensorLeaf) -> Leaf:
        path, key = leaf.elsewhere or ("", "")
        if not path.startswith("s3://") or "s3" not in protocols(self._fs):
            return super()._followed(leaf)
        there = self._fs._strip_protocol(path)
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
        try:
            size = self._fs.info(metadata_of(path))["size"]
            return FolderSource(self._fs, path, _read_metadata(self._fs, path, size, name), name=name)
        except (CheckpointError, FileNotFoundError, PermissionError) as error:
            return str(error)

    def _object(self, key: str, leaf: Any) -> str:
        """Return the path of a value's object."""
        if isinstance(leaf, TensorLeaf) and leaf.elsewhere is not None:
            return "/".join(leaf.elsewhere)
        return f"{self._path}/{key}"

    def _is_stored(self, name: str, leaf: TensorLeaf) -> bool:
        try:
            return bool(self._fs.info(self._object(name, leaf))["size"] == leaf.stored)
        except FileNotFoundError:
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
            of_s3 = hasattr(self._fs, "readinto_objects")
            sizes = self._fs.readinto_objects(wanted, self.advance) if of_s3 else self._read_files(wanted)
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
            with self._fs.open(part.path, "rb") as file:
                sizes[number] = file_size(file)
                if sizes[number] == part.size:
                    BareSource(file, part.size, advance).read([(part.start, part.memory)])

        threads = _THREADS if Folder(self._fs, self._path, self.name).threads else 1
        run_in_threads(read, range(len(wanted)), self.advance, threads=threads, name="fsspec_csx cerebras")
        return sizes


def protocols(fs: AbstractFileSystem) -> Sequence[str]:
    """Return the protocols of a filesystem."""
    return (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol


def metadata_of(path: str) -> str:
    """Return the path of the metadata of the checkpoint in a folder."""
    return f"{path.rstrip('/')}/{cerebras_metadata.NAME}"


def _checksums(metadata: dict[str, Any]) -> dict[str, int]:
    """Return the CRC-32 of values by name, if this package wrote the checkpoint."""
    found = own_entry(metadata, "crc32", dict)
    return {key: crc for key, crc in found.items() if type(crc) is int}
