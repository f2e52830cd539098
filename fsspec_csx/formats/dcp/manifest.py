"""The manifest of a sharded checkpoint: torch's ``.metadata``, read without running code.

It is a pickle of a ``Metadata``: https://docs.pytorch.org/docs/stable/distributed.checkpoint.html

In shards that this package writes, the location of an item has two more attributes, which torch ignores. ``plain`` has
the position of the tensor's bytes in the item, and their CRC-32. ``integer_keys`` lists which keys of the entry's path
are integers, because torch's planner converts them to text.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo as ItemLocation
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from fsspec_csx.errors import InvalidCheckpointError, UnsafeCheckpointError, text_of
from fsspec_csx.formats.damage import AGAIN
from fsspec_csx.formats.dcp.layout import MANIFEST, ShardedFolder
from fsspec_csx.formats.structure_limits import DEPTH
from fsspec_csx.formats.torch_zip.pickle_bounds import Bounds, ExcessError, ScanError, scan

__all__ = ["ItemLocation", "Plain", "read"]

T = TypeVar("T")

_DIMENSIONS = 64  # as numpy's arrays
_PATH_MAX = 1024
_SHOWN = 80

VERSION = "1.0.0"
"""The version of the format, as torch writes it."""

_METADATA, _FILES = "torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem"
_SHARDED = "torch.distributed._shard.sharded_tensor.metadata"  # of torch before 2.3
_NAMED = {
    *(f"{_METADATA}.{each.__name__}" for each in (Metadata, MetadataIndex, StorageMeta, TensorProperties)),
    *(f"{_METADATA}.{each}" for each in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
    *(f"{_METADATA}._MEM_FORMAT_ENCODING", f"{_FILES}._StorageInfo", "torch.serialization._get_layout"),
    *(f"{_SHARDED}.TensorProperties", f"{_SHARDED}.MEM_FORMAT_ENCODING"),
    *(f"{module}.{system}Path" for module in ("pathlib", "pathlib._local") for system in ("Posix", "Windows")),
}
_BUILT_IN = {"torch.Size", "collections.OrderedDict"}


class Plain(NamedTuple):
    """Describes a tensor that is stored in its item as contiguous row-major elements.

    Attributes:
        start: the position of its first byte in the item.
        crc32: of its bytes; None if unknown.
    """

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    crc32: int | None

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def place(path: str, offset: int, length: int, plain: Plain | None = None) -> ItemLocation:
    """Return the location of an item: the name of its shard, and its position and size there in bytes."""
    made = ItemLocation(path, offset, length)
    if plain is not None:
        made.plain = tuple(plain)  # type: ignore[attr-defined]
    return made


def plain_of(item: ItemLocation) -> Plain | None:
    """Return how the tensor of an item is stored; None if the manifest does not record it."""
    plain = getattr(item, "plain", None)
    return None if plain is None else Plain(*plain)


def with_integer_keys(item: ItemLocation, positions: tuple[int, ...]) -> ItemLocation:
    """Return the location of an item, with the positions of integers among the keys of its entry."""
    if positions:
        item = copy.copy(item)  # tensors that share memory share a location
        item.integer_keys = positions  # type: ignore[attr-defined]
    return item


def paths_of(metadata: Metadata) -> dict[str, tuple[Any, ...]]:
    """Return the keys that lead to each entry: strings, an ``int`` for a list index, ``(3,)`` for an integer key."""
    positions = {index.fqn: getattr(item, "integer_keys", ()) for index, item in metadata.storage_data.items()}
    found = {}
    for name in metadata.state_dict_metadata:
        path = (metadata.planner_data or {}).get(name, (name,))
        integers = positions.get(name, ())
        found[name] = tuple(_integer_key(key) if number in integers else key for number, key in enumerate(path))
    return found


def _integer_key(key: str | int) -> str | int | tuple[int]:
    """Return ``(3,)`` for the text ``3``; other keys are unchanged."""
    try:
        return (int(key),) if isinstance(key, str) and str(int(key)) == key else key
    except ValueError:
        return key


def read(folder: ShardedFolder, name: str = MANIFEST) -> Metadata:
    """Read a manifest; raise an UnsafeCheckpointError if it names anything that a manifest does not need."""
    with folder.open(name) as file:
        data = file.read()
    shown = f"The manifest of {folder.name}"
    try:
        scan(data)
        return _metadata(_Unpickler(data, shown).load(), len(data))
    except UnsafeCheckpointError:
        raise
    except (ScanError, ExcessError) as error:
        what = "is not whole" if isinstance(error, ScanError) else "makes much more than it holds"
        raise InvalidCheckpointError(f"{shown} is damaged (its pickle {what}).", AGAIN) from None
    except Exception as error:  # a pickle may raise anything
        what = text_of(error, named=not isinstance(error, _MalformedError))
        raise InvalidCheckpointError(f"{shown} is damaged ({what}).", AGAIN) from error


# -- from the pickle ---------------------------------------------------------------------------------------------------


class _Named:
    """Stands for a class in the pickle: stores its arguments and its state."""

    def __new__(cls, *args: Any) -> _Named:
        made = super().__new__(cls)
        made.args = args
        made.state = {}
        return made

    args: tuple[Any, ...]
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Makes a ``_Named`` of each class that a manifest may name.

    Each pickle gets its own classes, because a pickle may change them.
    """

    def __init__(self, data: bytes, shown: str) -> None:
        super().__init__(io.BytesIO(data))
        self._shown = shown
        self._classes: dict[str, type[_Named]] = {}
        self._functions = Bounds(len(data)).functions

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _NAMED:
            return self._classes.setdefault(full, type(name, (_Named,), {}))
        if full in _BUILT_IN:
            return self._functions[full]
        found = getattr(torch, name, None) if module == "torch" and "." not in name else None
        if isinstance(found, torch.dtype):
            return found
        reason = f"{self._shown} names {full[:_SHOWN]}, which could run code when loaded."
        raise UnsafeCheckpointError(reason, "Load it only by the tool of an author whom you trust.")


class _MalformedError(Exception):
    """A part of the manifest is invalid."""


def _metadata(found: Any, most: int) -> Metadata:
    """Build the manifest. Limit its parts by the size of its pickle, which may repeat one list many times."""
    state = _state(found, "Metadata")
    entries = _expect(state.get("state_dict_metadata"), dict)
    _check(sum(map(_chunks, entries.values())) <= most, "number of chunks")
    tensors = {_expect(name, str): _entry(each) for name, each in entries.items()}
    metadata = Metadata(tensors)
    paths = _paths(state.get("planner_data"))
    _check(sum(map(len, (paths or {}).values())) <= most, "number of names")
    metadata.planner_data = paths
    stored = {_index(key): _place(each) for key, each in _expect(state.get("storage_data"), dict).items()}
    metadata.storage_data = stored
    meta = state.get("storage_meta")
    save_id = _state(meta, "StorageMeta").get("save_id") if isinstance(meta, _Named) else None
    metadata.storage_meta = StorageMeta(save_id=save_id if isinstance(save_id, str) else None)
    return metadata


def _chunks(found: Any) -> int:
    """Return how many chunks an entry has, if it is a tensor."""
    chunks = found.state.get("chunks") if isinstance(found, _Named) and isinstance(found.state, dict) else None
    return len(chunks) if isinstance(chunks, list) else 0


def _entry(found: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(found, _Named) and type(found).__name__ == "BytesStorageMetadata":
        return BytesStorageMetadata()
    state = _state(found, "TensorStorageMetadata")
    size = _size(state.get("size"))
    chunks = [_chunk(each, size) for each in _expect(state.get("chunks"), list)]
    return TensorStorageMetadata(_properties(state.get("properties")), size, chunks)


def _properties(found: Any) -> TensorProperties:
    state = _expect(_expect(found, _Named).state, tuple)
    _check(len(state) in (5, 6), "properties")
    made = TensorProperties(dtype=_expect(state[0], torch.dtype), requires_grad=_expect(state[2], bool))
    if len(state) == 6 and state[5] is not None and hasattr(made, "strides"):  # in torch 2.15, not in 2.13
        made.strides = tuple(_size(state[5]))
    return made


def _chunk(found: Any, size: torch.Size) -> ChunkStorageMetadata:
    state = _state(found, "ChunkStorageMetadata")
    offsets, sizes = _size(state.get("offsets")), _size(state.get("sizes"))
    _check(len(offsets) == len(sizes) == len(size), "chunk")
    _check(all(start + length <= end for start, length, end in zip(offsets, sizes, size, strict=True)), "chunk")
    return ChunkStorageMetadata(offsets, sizes)


def _index(found: Any) -> MetadataIndex:
    state = _state(found, "MetadataIndex")
    offset = state.get("offset")
    index = state.get("index")
    return MetadataIndex(
        _expect(state.get("fqn"), str),
        None if offset is None else _size(offset),
        index if isinstance(index, int) else None,
    )


def _place(found: Any) -> ItemLocation:
    state = _state(found, "_StorageInfo")
    path = _expect(state.get("relative_path"), str)
    parts = path.replace("\\", "/").split("/")
    inside = bool(parts[-1]) and ".." not in parts and bool(parts[0]) and ":" not in path and "\0" not in path
    _check(inside and path.isprintable() and len(path) <= _PATH_MAX, f"path {path[:_SHOWN]!r}")
    made = place(path, _count(state.get("offset")), _count(state.get("length")), _plain(state.get("plain")))
    if integers := state.get("integer_keys"):
        _check(len(_expect(integers, tuple)) <= DEPTH, "number of keys")
        made = with_integer_keys(made, tuple(map(_count, integers)))
    if transforms := state.get("transform_descriptors"):
        _check(len(_expect(transforms, list)) <= _DIMENSIONS, "number of extensions")
        made.transform_descriptors = [_expect(each, str) for each in transforms]
    return made


def _plain(found: Any) -> Plain | None:
    if found is None:
        return None
    _check(isinstance(found, tuple) and len(found) == 4, "place")
    start, dtype, shape, crc32 = found
    return Plain(_count(start), _expect(dtype, torch.dtype), _size(shape), None if crc32 is None else _count(crc32))


def _paths(found: Any) -> dict[str, tuple[str | int, ...]] | None:
    """Return the path of each entry in the nested state dict, which only torch's own planners record."""
    if not isinstance(found, dict) or not all(isinstance(path, tuple) and path for path in found.values()):
        return None
    _check(all(len(path) <= DEPTH for path in found.values()), f"nesting deeper than {DEPTH}")
    return {
        _expect(name, str): tuple(each if isinstance(each, str) else _count(each) for each in path)
        for name, path in found.items()
    }


def _state(found: Any, kind: str) -> dict[str, Any]:
    if not isinstance(found, _Named) or type(found).__name__ != kind:
        msg = f"no {kind}"
        raise _MalformedError(msg)
    state: dict[str, Any] = _expect(found.state, dict)
    return state


def _size(found: Any) -> torch.Size:
    _check(len(_expect(found, tuple)) <= _DIMENSIONS, "number of dimensions")
    counts = [_count(each) for each in found]
    return found if type(found) is torch.Size else torch.Size(counts)


def _count(found: Any) -> int:
    number: int = _expect(found, int)
    if not 0 <= number < 2**63:
        msg = f"number {number}"
        raise _MalformedError(msg)
    return number


def _expect(found: Any, kind: type[T] | Callable[..., T]) -> Any:
    if not isinstance(found, kind):  # type: ignore[arg-type]
        msg = f"{type(found).__name__} for a {kind.__name__}"
        raise _MalformedError(msg)
    return found


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise _MalformedError(what)
