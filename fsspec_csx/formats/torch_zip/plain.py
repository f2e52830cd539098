"""State dicts built by Python's own unpickler, in C, in place of torch's, which is written in Python.

It makes only what the closed table of names below has: mappings, lists, tuples, sets, text, bytes, numbers, tensors and
parameters with their attributes, and torch's shapes, dtypes and devices. Of all else, and of whatever is not quite
right, this makes nothing, and torch reads or refuses it. Each name stands for the object that torch.load takes for it,
or for a function that does what that does, and refuses what torch.save does not write.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Collection
from typing import Any, NamedTuple, TypeVar

import torch
from torch import serialization

from fsspec_csx.formats.torch_zip import structure_limits
from fsspec_csx.formats.torch_zip.archive import Archive
from fsspec_csx.formats.torch_zip.pickle_bounds import Bounds, StandIn
from fsspec_csx.formats.torch_zip.pickle_scan import scan
from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.map_location import LocationMapper, reserved

_VERSION = b"3"
_PROTOCOL = b"\x80\x02"  # the one of torch.save
_DIMENSIONS = 64
_CPU = torch.device("cpu")
_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_COMPLEX_KINDS = ("ComplexDouble", "ComplexFloat")
_NAMES: dict[tuple[str, str], Any] = {
    ("torch", "Tensor"): StandIn(torch.Tensor),
    ("torch", "device"): lambda *args: torch.device(*args),
    ("torch.storage", "UntypedStorage"): StandIn(torch.UntypedStorage),
    **{
        ("torch", f"{kind}Storage"): serialization.StorageType(f"{kind}Storage")  # type: ignore[no-untyped-call]
        for kind in (*_KINDS, *_COMPLEX_KINDS)
    },
}


class _NotPlainError(Exception):
    """The pickle has something that this does not make."""


class _Stored(NamedTuple):
    """A storage in the pickle, of which tensors are made; it has no state that a pickle could set.

    Attributes:
        storage: reserved, not filled.
        dtype: of its elements; bytes, if the tensors have their own.
    """

    storage: torch.UntypedStorage
    dtype: torch.dtype

    def __call__(self) -> None:
        """Refuse to be called by the pickle; see ``nesting.has_callables``.

        Raises:
            TypeError: always.
        """
        raise TypeError


class _Unpickler(pickle.Unpickler):
    """The object of a pickle, with storages that are not filled.

    Args:
        archive: with the pickle, and the records of the storages.
        places: where storages belong.
        wanted: see ``load``.

    Attributes:
        records: those of the storages.
        left: see ``LazyObject``.
        bounds: what was made of builtins.
    """

    def __init__(self, archive: Archive, places: LocationMapper, wanted: Collection[int] | None) -> None:
        # Not a BytesIO alone: of what can be peeked at, pickle reads many bytes at once.
        super().__init__(io.BufferedReader(io.BytesIO(archive.pickle)))
        self.records: list[Record] = []
        self.left = False
        self.bounds = Bounds(len(archive.pickle))
        self._places = places
        self._wanted = wanted
        self._found = {each[0].name.split(b"/", 2)[2]: each for each in archive.data}
        self._storages: dict[str, _Stored] = {}
        self._names = {
            **self.bounds.names,
            **_NAMES,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of_dtype,
            ("torch._utils", "_rebuild_parameter"): _parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): _parameter_with_state,
            ("torch._tensor", "_rebuild_from_type_v2"): self._tensor_with_state,
        }

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name.

        Raises:
            LookupError: if it has none here.
        """
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        return self._names[module, name]

    def persistent_load(self, identity: Any) -> _Stored:
        """The storage that the pickle identifies.

        Raises:
            Exception: if there is none in the archive, or it is of another size.
        """
        word, kind, key, location, count = identity
        if word != "storage" or [*map(type, identity[2:])] != [str, str, int]:
            raise _NotPlainError
        if key in self._storages:
            return self._storages[key]
        dtype = torch.uint8 if isinstance(kind, StandIn) else kind.dtype
        entry, offset = self._found[key.encode()]
        if count * dtype.itemsize != entry.size:
            raise _NotPlainError
        device = _CPU if self._places.stays(location) else self._device(location, offset, entry.size)
        storage = reserved(entry.size, device)
        if entry.size and device.type != "meta":
            self.records.append(Record(entry.name.decode(errors="replace"), offset, storage, entry.crc32 or None))
        self._storages[key] = stored = _Stored(storage, dtype)
        return stored

    def _device(self, location: str, offset: int, size: int) -> torch.device:
        """Where a storage goes that does not stay on the CPU, unless it is not wanted."""
        if size and self._wanted is not None and offset not in self._wanted:
            self.left = True
            return _CPU
        device = self._places.device(location)
        if device is None:  # the caller's map_location has to see the bytes
            raise _NotPlainError
        return device

    def _tensor(
        self,
        stored: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        metadata: Any = None,
    ) -> torch.Tensor:
        return self._tensor_of_dtype(stored, offset, size, stride, requires_grad, hooks, None, metadata)

    def _tensor_of_dtype(
        self,
        stored: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        dtype: torch.dtype | None,
        metadata: Any = None,
    ) -> torch.Tensor:
        if type(stored) is not _Stored or type(hooks) is not OrderedDict or type(requires_grad) is not bool:
            raise _NotPlainError
        dtype = stored.dtype if dtype is None else dtype
        _check_extent(stored.storage.nbytes(), dtype.itemsize, offset, size, stride)
        tensor = torch.empty((0,), dtype=dtype, device=stored.storage.device)
        tensor.set_(stored.storage, offset, size, stride)
        if requires_grad:
            tensor.requires_grad = True
        if metadata:
            torch_compat.set_tensor_metadata(tensor, metadata)
        tensor._backward_hooks = hooks
        return tensor

    def _tensor_with_state(self, function: Any, kind: Any, args: Any, state: Any) -> torch.Tensor:
        if function not in (self._tensor, self._tensor_of_dtype) or getattr(kind, "made", None) is not torch.Tensor:
            raise _NotPlainError
        made: torch.Tensor = function(*args)
        return _with_state(made, state)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> torch.nn.Parameter:
    if type(data) is not torch.Tensor or type(requires_grad) is not bool or type(hooks) is not OrderedDict:
        raise _NotPlainError
    made = torch.nn.Parameter(data, requires_grad)
    made._backward_hooks = hooks
    return made


def _parameter_with_state(data: Any, requires_grad: Any, hooks: Any, state: Any) -> torch.nn.Parameter:
    return _with_state(_parameter(data, requires_grad, hooks), state)


_Tensor = TypeVar("_Tensor", bound=torch.Tensor)


def _with_state(tensor: _Tensor, state: Any) -> _Tensor:
    """Set attributes, as they were of a tensor that was saved."""
    if type(state) is not dict or structure_limits.has_callables(state):
        raise _NotPlainError
    for name, value in state.items():
        setattr(tensor, name, value)
    return tensor


def _check_extent(nbytes: int, width: int, offset: Any, size: Any, stride: Any) -> None:
    """See that a view lies within its storage, which torch would enlarge."""
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride) or len(size) > _DIMENSIONS:
        raise _NotPlainError
    end = offset + 1
    for count, step in zip(size, stride, strict=True):
        if type(count) is not int or type(step) is not int or count < 0 or step < 0:
            raise _NotPlainError
        end += (count - 1) * step
    if type(offset) is not int or offset < 0 or (end * width > nbytes and 0 not in size):
        raise _NotPlainError


def load(archive: Archive, map_location: Any = None, wanted: Collection[int] | None = None) -> LazyObject | None:
    """What ``torch.load(weights_only=True)`` makes of an archive, less the tensors' bytes.

    Args:
        archive: what it consists of.
        map_location: see ``torch.load``.
        wanted: the positions, in bytes, of the records whose storages go where ``map_location`` has them; others stay
            on the CPU. None for all.

    Returns:
        None if this cannot make it.
    """
    if archive.version != _VERSION or not archive.pickle.startswith(_PROTOCOL) or torch_compat.skips_data():
        return None
    unpickler = _Unpickler(archive, LocationMapper(map_location), wanted)
    try:
        states = scan(archive.pickle)
        obj = unpickler.load()
    except Exception:  # whatever a pickle raises: torch raises the same, or knows better
        return None
    # The only states that torch has a pickle set are attributes of mappings.
    if states and sum(bool(vars(made)) for made in unpickler.bounds.ordered) != states:
        return None
    if any(
        structure_limits.has_callables(vars(made)) for made in unpickler.bounds.ordered
    ) or structure_limits.has_callables(obj):
        return None
    return LazyObject(obj, unpickler.records, unpickler.left)
