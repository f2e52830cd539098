"""CerebrasSource: presents a Cerebras checkpoint as one source of bytes, in which each tensor is contiguous."""

from __future__ import annotations

import bisect
import os
import pickle
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from fsspec_csx.errors import InvalidCheckpointError, UnsafeCheckpointError
from fsspec_csx.formats import check_little_endian
from fsspec_csx.formats.cerebras import leaf as cerebras_leaf
from fsspec_csx.formats.cerebras import tree as cerebras_tree
from fsspec_csx.formats.cerebras.leaf import Alias, ConstantLeaf, Leaf, TensorLeaf, UnreadValue, Value
from fsspec_csx.formats.cerebras.metadata import LEAF, LITTLE_ENDIAN, SUCCESS
from fsspec_csx.formats.cerebras.tree import Tree
from fsspec_csx.formats.checkpoint_info import CheckpointInfo, TensorInfo
from fsspec_csx.formats.damage import damaged
from fsspec_csx.tensors import names
from fsspec_csx.tensors.crc32 import crc32_of
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.names import quoted
from fsspec_csx.tensors.source import Source, Spans, memory_of
from fsspec_csx.tensors.staging import batches

_WRITER = "__cstorch_version__"
_BATCH = 64 * 2**20
"""The most bytes of compressed objects in memory at a time, unless one object has more."""


class _Name(str):
    """The name of a value, in place of the value."""


class LeafSpan(NamedTuple):
    """The position of a tensor's bytes in the source."""

    name: str
    leaf: TensorLeaf | ConstantLeaf
    start: int


class CerebrasSource(Source):
    """A Cerebras checkpoint of any storage.

    Attributes:
        size: the size of all tensors in bytes, uncompressed.
        tree: its nesting.
        leaves: the metadata of each value, by name, in order.
        crc32: the expected CRC-32 of tensors and arrays, by name, where it is known.
    """

    format = "cerebras"

    def __init__(self, name: str, metadata: Mapping[str, Any], crc32: Mapping[str, int] | None = None) -> None:
        super().__init__(None, 0)  # no range is read before the structure is known
        check_little_endian(*LITTLE_ENDIAN)
        if not metadata.get(SUCCESS):
            reason = f"{name} is a Cerebras checkpoint that was not finished: its metadata has no {SUCCESS}."
            raise InvalidCheckpointError(reason, "Save it again, or delete it.")
        self.name = name
        self.metadata = metadata
        self.tree: Tree = cerebras_tree.parsed(metadata.get("__spec__"), name=name)
        self.leaves: dict[str, Leaf] = {}
        for key in cerebras_tree.leaves(self.tree):
            if key in self.leaves:
                raise damaged(name, f"two of its values have the name {quoted(key)}")
            self.leaves[key] = self._leaf(key)
        self.crc32 = crc32 or {}
        self._places: list[LeafSpan] | None = None
        self._unpacked: tuple[str, bytes] | None = None
        self.size = sum(leaf.nbytes for leaf in self.leaves.values() if isinstance(leaf, (TensorLeaf, ConstantLeaf)))

    @property
    def stored(self) -> int:
        """The stored size of the values in bytes, without the metadata."""
        return sum(leaf.stored for leaf in self.leaves.values() if isinstance(leaf, (TensorLeaf, UnreadValue)))

    def _leaf(self, key: str) -> Leaf:
        return cerebras_leaf.parsed(key, self.metadata.get(key + LEAF), name=self.name)

    def holder(self, key: str) -> str:
        """Follow links from a value; return the name of the value that holds the data."""
        seen = {key}
        while isinstance(leaf := self.leaves.get(key), Alias):
            key = leaf.name
            if key in seen:
                raise damaged(self.name, f"{quoted(key)} is a link to itself")
            seen.add(key)
        if leaf is None:
            raise damaged(self.name, f"a link leads to {quoted(key)}, which it does not have")
        return key

    # -- the object ------------------------------------------------------------------------------------------------

    def tensors(self) -> LazyObject:
        """Return the tensors by name, unfilled on the CPU; tensors shared by links occur once."""
        obj: dict[str, torch.Tensor] = {}
        records = []
        for name, leaf, start in self.places():
            if isinstance(leaf, TensorLeaf) and leaf.is_array:
                continue
            tensor = obj[name] = self._reserved(name, leaf)
            if tensor.nbytes:
                records.append(Record(name, start, tensor.untyped_storage(), self.crc32.get(name)))
        return LazyObject(obj, records)

    def rebuild(self, tensors: Mapping[str, torch.Tensor], *, weights_only: bool) -> Any:
        """Return the object with these tensors, on any device; without ``weights_only``, pickles are loaded."""
        found: dict[str, Any] = {**tensors, **self._arrays()}
        if not weights_only:
            found |= self._unpickled()
        for name, leaf in self.leaves.items():
            if name not in found:
                found[name] = leaf.value if isinstance(leaf, Value) else leaf
        return cerebras_tree.rebuild(self.tree, lambda name: found[self.holder(name)])

    def info(self) -> CheckpointInfo:
        """Describe the checkpoint from its metadata alone."""
        tensors: dict[str, TensorInfo] = {}
        values: dict[str, Any] = {}

        for path, value in names.walk(cerebras_tree.rebuild(self.tree, _Name)):
            leaf = self.leaves[self.holder(value)] if isinstance(value, _Name) else value
            if isinstance(leaf, (TensorLeaf, ConstantLeaf)):
                tensors[path] = TensorInfo(leaf.dtype, leaf.shape, leaf.nbytes)
            else:
                values[path] = leaf.value if isinstance(leaf, Value) else leaf
        extra = {key: str(value) for key, value in self.metadata.items() if key in ("__version__", _WRITER)}
        writer = f"cerebras_pytorch {self.metadata.get(_WRITER, 'of an unknown version')}"
        return CheckpointInfo(self.name, "cerebras", writer, self.stored, tensors, values, extra)

    def places(self) -> list[LeafSpan]:
        """Return the positions of all tensors and arrays, in order."""
        if self._places is None:
            self._places, self.size = [], 0
            for name, leaf in self.leaves.items():
                if isinstance(leaf, TensorLeaf) and leaf.elsewhere is not None:
                    leaf = self.leaves[name] = self._followed(leaf)
                if isinstance(leaf, (TensorLeaf, ConstantLeaf)):
                    self._places.append(LeafSpan(name, leaf, self.size))
                    self.size += leaf.nbytes
        return self._places

    def _followed(self, leaf: TensorLeaf) -> Leaf:
        """Return the metadata of a tensor in another checkpoint; by default it is not opened."""
        path, key = leaf.elsewhere or ("", "")
        return UnreadValue(f"tensor {quoted(key)} of the checkpoint {quoted(path)}, where only one on S3 is looked for")

    def _arrays(self) -> dict[str, Any]:
        places = [place for place in self.places() if isinstance(place.leaf, TensorLeaf) and place.leaf.is_array]
        made = [self._reserved(place.name, place.leaf) for place in places]
        self._read_checked(places, made)
        return {place.name: tensor.numpy() for place, tensor in zip(places, made, strict=True)}

    def _reserved(self, name: str, leaf: TensorLeaf | ConstantLeaf) -> torch.Tensor:
        """Reserve the memory of a tensor; if there is too little, check the size that the tensor claims."""
        try:
            return torch.empty(leaf.shape, dtype=leaf.dtype, device="cpu")
        except RuntimeError as error:
            if isinstance(leaf, ConstantLeaf) or not self._is_stored(name, leaf):
                what = f"{quoted(name)} is to have {leaf.nbytes} bytes, more than there are and than memory has"
                raise damaged(self.name, what) from error
            raise

    @abstractmethod
    def _is_stored(self, name: str, leaf: TensorLeaf) -> bool:
        """Return whether a tensor has as many bytes as its metadata says."""

    def _read_checked(self, places: Sequence[LeafSpan], made: Sequence[torch.Tensor]) -> None:
        spans = [(place.start, memory_of(tensor.untyped_storage())) for place, tensor in zip(places, made, strict=True)]
        for place, crc in zip(places, self.read(spans, crc32=True), strict=True):
            if self.crc32.get(place.name, crc) != crc:
                raise damaged(self.name, f"the bytes of {quoted(place.name)} are not those that were saved")

    def pickle_of(self, leaf: UnreadValue) -> bytes:
        """Return the bytes of a pickled value, without loading it."""
        name = next(name for name, each in self.leaves.items() if each is leaf)
        (data,) = self._objects([(name, leaf)])
        return self._body(name, leaf, data)

    def _body(self, name: str, leaf: UnreadValue, data: bytes) -> bytes:
        body: bytes | None = unpacked(data) if leaf.compressed else data
        if body is None:
            raise damaged(self.name, f"{quoted(name)} is not one zstd frame")
        return body

    def _unpickled(self) -> dict[str, Any]:
        wanted = [
            (name, leaf) for name, leaf in self.leaves.items() if isinstance(leaf, UnreadValue) and leaf.runs_code
        ]
        found = {}
        for (name, leaf), data in zip(wanted, self._objects(wanted), strict=True):
            body = self._body(name, leaf, data)
            try:
                found[name] = pickle.loads(body)
            except ModuleNotFoundError as error:
                found[name] = UnreadValue(f"pickle that needs the package {error.name}")
        return found

    # -- bytes -----------------------------------------------------------------------------------------------------

    def read(self, spans: Spans, *, crc32: bool = False) -> list[int]:
        """Fill spans; none may cross the end of a tensor."""
        places = self.places()
        starts = [place.start for place in places]
        plain: list[tuple[LeafSpan, int, memoryview]] = []
        packed: dict[str, list[tuple[LeafSpan, int, memoryview]]] = {}
        for start, memory in spans:
            if not len(memory):
                continue
            place = places[bisect.bisect_right(starts, start) - 1]
            part = place, start - place.start, memory
            if isinstance(place.leaf, ConstantLeaf):
                _repeat(place.leaf, memory)
                self.advance(len(memory))
            elif place.leaf.compressed:
                packed.setdefault(place.name, []).append(part)
            else:
                plain.append(part)
        if plain:
            self._fetch(plain)
        self._unpack(packed)
        return [crc32_of(memory) for _, memory in spans] if crc32 else []

    def _unpack(self, packed: Mapping[str, Sequence[tuple[LeafSpan, int, memoryview]]]) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for batch in batches((parts[0][0] for parts in packed.values()), _memory_of, _BATCH):
                for place, data in zip(batch, self._unpacked_bytes(batch, threads), strict=True):
                    for _, start, memory in packed[place.name]:
                        memory[:] = data[start : start + len(memory)]
                        self.advance(len(memory))

    def _unpacked_bytes(self, batch: Sequence[LeafSpan], threads: ThreadPoolExecutor) -> list[bytes]:
        if self._unpacked is not None and [place.name for place in batch] == [self._unpacked[0]]:
            return [self._unpacked[1]]  # the next piece of a large tensor
        bodies = self._objects([(place.name, place.leaf) for place in batch])
        sizes = [place.leaf.nbytes for place in batch]
        found = list(threads.map(unpacked, bodies, sizes))
        for place, data in zip(batch, found, strict=True):
            if data is None:
                what = (
                    f"{quoted(place.name)} is not one zstd frame of the {place.leaf.nbytes} bytes that it should have"
                )
                raise damaged(self.name, what)
        self._unpacked = (batch[-1].name, found[-1]) if len(batch) == 1 else None
        return found

    @abstractmethod
    def _fetch(self, parts: Sequence[tuple[LeafSpan, int, memoryview]]) -> None:
        """Fill memory from uncompressed tensors, each from a position in it, and report to ``advance``."""

    @abstractmethod
    def _objects(self, wanted: Sequence[tuple[str, Any]]) -> list[bytes]:
        """Return the bytes of whole objects, given the names and the metadata of values."""


def refuse_unread(obj: Any, name: str) -> None:
    """Refuse an object with unread values; raise an UnsafeCheckpointError if some are pickles."""
    left = [(key, value) for key, value in names.walk(obj) if isinstance(value, UnreadValue)]
    if pickles := [key for key, value in left if value.runs_code]:
        reason = f"{name} has pickles, which may run any code: {names.listed(pickles)}."
        remedy = "Load the rest with keys, or pass weights_only=False if you trust its author."
        raise UnsafeCheckpointError(reason, remedy)
    if left:
        listed = ", ".join(f"{key!r} ({value.kind})" for key, value in left)
        raise InvalidCheckpointError(f"{name} has what cannot be read: {listed}.", "Load the rest with keys.")


def _repeat(leaf: ConstantLeaf, memory: memoryview) -> None:
    number = torch.full((1,), leaf.number, dtype=leaf.dtype)
    torch.frombuffer(memory, dtype=leaf.dtype).copy_(number.expand(len(memory) // leaf.dtype.itemsize))


def _memory_of(place: LeafSpan) -> int:
    """Return the memory in bytes that decompressing a tensor takes."""
    return place.leaf.nbytes + (place.leaf.stored if isinstance(place.leaf, TensorLeaf) else 0)


def unpacked(data: bytes, size: int | None = None) -> Any:
    """Decompress a zstd frame, up to ``size`` bytes; return None if it is incomplete or has another size."""
    zstd = _zstd()
    decompressor = zstd.ZstdDecompressor()
    try:
        found = decompressor.decompress(data, -1 if size is None else size + 1)
    except zstd.ZstdError:
        return None
    whole = decompressor.eof and not decompressor.unused_data and size in (None, len(found))
    return found if whole else None


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        try:
            from backports import zstd
        except ImportError as error:
            msg = "The checkpoint is compressed by zstd, which this Python cannot read. Install 'fsspec-csx[cerebras]'."
            raise ModuleNotFoundError(msg, name="backports.zstd") from error
    return zstd
