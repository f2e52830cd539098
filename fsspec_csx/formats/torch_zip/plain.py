"""Loads state dicts with Python's C unpickler. torch's own is written in Python, and slower.

It accepts only a closed table of names: mappings, lists, tuples, sets, text, bytes, numbers, tensors and parameters
with attributes, and torch's shapes, dtypes and devices. Anything else, and anything unusual, is left to torch, which
reads or refuses it. Each name maps to the object that torch.load uses, or to a stricter function that refuses what
torch.save does not write.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import torch

from fsspec_csx.formats.base import ON_CPU, ReadOptions
from fsspec_csx.formats.torch_zip import rebuilding, structure_limits
from fsspec_csx.formats.torch_zip.archive import Archive
from fsspec_csx.formats.torch_zip.pickle_bounds import Bounds, StandIn, scan, sealed
from fsspec_csx.formats.torch_zip.rebuilding import refused
from fsspec_csx.formats.torch_zip.storage_placement import ArchiveStorages, StoragePlacer
from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source

_VERSION = b"3"
_PROTOCOL = b"\x80\x02"  # that torch.save uses
_NAMES: dict[tuple[str, str], Any] = {
    ("torch", "Tensor"): StandIn(torch.Tensor),
    ("torch.storage", "UntypedStorage"): StandIn(torch.uint8),
    **{("torch", path.removeprefix("torch.")): StandIn(dtype) for path, dtype in torch_compat.storage_types().items()},
}


class _PickledStorage(NamedTuple):
    """An unfilled storage of the pickle, and the dtype of its elements; uint8 if the tensors have their own dtypes.

    It has no state that a pickle could set.
    """

    storage: torch.UntypedStorage
    dtype: torch.dtype

    def __call__(self) -> None:
        """Refuse to be called by the pickle; see ``structure_limits.has_callables``."""
        raise TypeError


class _Unpickler(pickle.Unpickler):
    """An unpickler whose storages are not filled; ``bounds`` tracks what was made of builtins."""

    def __init__(self, archive: Archive, placer: StoragePlacer) -> None:
        # Not a bare BytesIO: where peek exists, pickle reads ahead in large blocks.
        super().__init__(io.BufferedReader(io.BytesIO(archive.pickle)))
        self.bounds = Bounds(len(archive.pickle))
        self._storages = ArchiveStorages(archive, placer)
        functions = rebuilding.functions(_storage_and_dtype, indexes=True)
        functions |= {
            ("torch._utils", "_rebuild_parameter_with_state"): _parameter_with_state,
            ("torch._tensor", "_rebuild_from_type_v2"): self._tensor_with_state,
        }
        functions = {path: sealed(function) for path, function in functions.items()}
        self._rebuild = [functions["torch._utils", f"_rebuild_tensor_{version}"] for version in ("v2", "v3")]
        self._names = {**self.bounds.names, **_NAMES, **functions}

    def free(self) -> None:
        """Forget the functions of names: some are in a reference cycle with all storages."""
        self._names.clear()
        self.bounds.names.clear()

    def find_class(self, module: str, name: str) -> Any:
        """Return the object or function for a name."""
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        return self._names[module, name]

    def persistent_load(self, identity: Any) -> _PickledStorage:
        """Return the storage with a persistent id."""
        word, kind, key, location, count = identity
        if word != "storage" or [*map(type, identity[2:])] != [str, str, int]:
            raise refused("what this does not make")
        dtype = kind.made
        return _PickledStorage(self._storages.get(key, location, count * dtype.itemsize), dtype)

    def _tensor_with_state(self, function: Any, kind: Any, args: Any, state: Any) -> torch.Tensor:
        if function not in self._rebuild or getattr(kind, "made", None) is not torch.Tensor:
            raise refused("what this does not make")
        made: torch.Tensor = function(*args)
        return _with_state(made, state)


def _storage_and_dtype(stored: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
    if type(stored) is not _PickledStorage:
        raise refused("a tensor without a storage")
    return stored


def _parameter_with_state(data: Any, requires_grad: Any, hooks: Any, state: Any) -> torch.nn.Parameter:
    return _with_state(rebuilding.parameter(data, requires_grad, hooks), state)


_Tensor = TypeVar("_Tensor", bound=torch.Tensor)


def _with_state(tensor: _Tensor, state: Any) -> _Tensor:
    """Set the attributes that a tensor had when it was saved."""
    if type(state) is not dict or structure_limits.has_callables(state):
        raise refused("what this does not make")
    for name, value in state.items():
        setattr(tensor, name, value)
    return tensor


def load(archive: Archive, source: Source, name: str, options: ReadOptions = ON_CPU) -> LazyObject | None:
    """Load an archive as ``torch.load(weights_only=True)``, without the tensors' bytes; None leaves it to torch."""
    if archive.version != _VERSION or not archive.pickle.startswith(_PROTOCOL) or torch_compat.skips_data():
        return None
    # Try without a callable map_location first. It must run once for each storage, but torch would run it again.
    if callable(options.map_location) and load(archive, source, name, replace(options, map_location="cpu")) is None:
        return None
    placer = StoragePlacer(source, name, options)
    unpickler = _Unpickler(archive, placer)
    try:
        states = scan(archive.pickle)
        obj = unpickler.load()
    except Exception as error:  # a pickle may raise anything; torch raises the same, or can load it
        if error is placer.failure:
            raise
        return None
    finally:
        unpickler.free()
    # torch sets states only on mappings, as attributes. Other states are left to torch.
    if states and sum(bool(vars(made)) for made in unpickler.bounds.ordered) != states:
        return None
    if any(map(structure_limits.has_callables, [obj, *map(vars, unpickler.bounds.ordered)])):
        return None
    return LazyObject(obj, placer.records, placer.has_unplaced)
