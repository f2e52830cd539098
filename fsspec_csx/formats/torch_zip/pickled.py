"""Pickled: an object's pickle as torch.save makes it, and the storages of its tensors."""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, SimpleNamespace
from typing import IO, Any

import torch

from fsspec_csx.tensors import memory, names, torch_compat
from fsspec_csx.tensors.snapshot import copy_storages

_Replaced = Callable[[torch.Tensor], "torch.Tensor | None"]


class Pickled:
    """The pickle that ``torch.save`` would write of an object now, and its tensors' storages.

    The pickle has a persistent id in place of each storage:
    https://docs.pytorch.org/docs/stable/notes/serialization.html

    Args:
        obj: the object to save.
        copied: whether to copy the storages to the CPU, so that the object may change.
        replaced: called with each tensor; returns the tensor to pickle in its place, or None to keep it.

    Attributes:
        data: the file's ``data.pkl``.
        storages: in the order of the file's ``data/0``, ``data/1`` and so on.
        nbytes: the size of the pickle and the storages.

    Raises:
        FreedTensorError: if the storage of a tensor is too small for it.
        RuntimeError: if two tensors share memory under different dtypes, which torch refuses too.
    """

    def __init__(
        self,
        obj: object,
        *,
        copied: bool = False,
        replaced: _Replaced | None = None,
    ) -> None:
        numbering = _Numbering()
        try:
            plain = torch_compat.are_reductions_torchs() and _are_reductions_known()
            self.data = _dumped(obj, numbering, plain=plain, replaced=replaced)
        except _FreedError as error:
            raise memory.refused([name for name, value in names.walk(obj) if value is error.tensor]) from None
        self.storages = copy_storages(numbering.storages) if copied else numbering.storages
        self.nbytes = len(self.data) + sum(storage.nbytes() for storage in self.storages)

    def torch_save(self, file: Any) -> None:
        """Let torch write the file that ``torch.save`` would write of the object itself."""
        ready = SimpleNamespace(__name__="ready", Pickler=_ReadyPickler)
        torch.save(self, file, pickle_module=ready)


_OF_TORCH = (torch.Tensor, torch.storage.TypedStorage, torch.UntypedStorage)
_STORAGE_TYPES = torch_compat.unquantized_storage_types()
# The types of most objects in a pickle. None of them needs a persistent id.
_PLAIN = {str, int, float, bool, tuple, list, dict, type, type(None), OrderedDict, FunctionType}


class _FreedError(Exception):
    """The storage of a tensor is too small for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def _refuse_freed(tensor: torch.Tensor) -> None:
    if memory.is_freed(tensor):
        raise _FreedError(tensor)


class _Numbering:
    """Numbers storages in the order in which they are pickled."""

    def __init__(self) -> None:
        self.storages: list[torch.UntypedStorage] = []
        self._keys: dict[int, str] = {}
        self._dtype_at: dict[int, torch.dtype] = {}

    def identify(self, storage: torch.UntypedStorage, dtype: torch.dtype, kind: Any) -> tuple[str, Any, str, str, int]:
        """Return the persistent id of a storage; ``kind`` is the storage class that stands for its dtype."""
        address = storage.data_ptr()
        if address and self._dtype_at.setdefault(address, dtype) != dtype:
            msg = "Two tensors share memory under different dtypes, which no torch file can hold. Clone one of them."
            raise RuntimeError(msg)
        key = self._keys.setdefault(torch_compat.address(storage), str(len(self._keys)))
        if len(self.storages) < len(self._keys):
            if rest := storage.nbytes() % dtype.itemsize:  # torch.load refuses a part of an element
                storage = storage[:-rest]
            self.storages.append(storage)  # keep it: the address of a temporary storage could be reused
        return "storage", kind, key, torch_compat.location_tag(storage), storage.nbytes() // dtype.itemsize


class _Pickler(pickle.Pickler):
    """Pickles as torch.save does by default, with persistent ids for storages."""

    def __init__(self, file: IO[bytes], numbering: _Numbering, *, plain: bool) -> None:
        super().__init__(file, protocol=2)
        self._numbering = numbering
        reductions = _PlainReductions(numbering).by_type() if plain else {}
        self._skipped = _PLAIN.union(reductions)
        self.dispatch_table = {**reductions, **copyreg.dispatch_table}

    def persistent_id(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in self._skipped:
            return None
        if kind is _Identity:
            return obj.persistent_id
        if not isinstance(obj, _OF_TORCH):
            return None
        if isinstance(obj, torch.Tensor):
            _refuse_freed(obj)
            return None
        if isinstance(obj, torch.UntypedStorage):
            return self._numbering.identify(obj, torch.uint8, torch.UntypedStorage)
        return self._numbering.identify(torch_compat.untyped(obj), obj.dtype, torch_compat.storage_type(obj))


class _ReplacingPickler(_Pickler):
    """Pickles other tensors in place of some."""

    replaced: _Replaced

    def reducer_override(self, obj: Any) -> Any:
        other = self.replaced(obj) if isinstance(obj, torch.Tensor) else None
        return NotImplemented if other is None else _reduce_other(other)


@dataclass(slots=True)
class _Identity:
    """Stands for a storage."""

    persistent_id: tuple[str, Any, str, str, int]


class _NoHooks:
    """Stands for an empty OrderedDict."""


class _PlainReductions:
    """Reduces torch's own tensor classes in a third of the time that torch takes."""

    def __init__(self, numbering: _Numbering) -> None:
        self._numbering = numbering

    def by_type(self) -> dict[type, Callable[[Any], Any]]:
        """Return a function for each class. Stored as an attribute, they would form a cycle with all storages."""
        return {
            torch.Tensor: self._reduce_tensor,
            torch.nn.Parameter: self._reduce_parameter,
            _NoHooks: lambda hooks: (OrderedDict, ()),
        }

    def _reduce_tensor(self, tensor: torch.Tensor) -> Any:
        dtype = tensor.dtype
        kind = _STORAGE_TYPES.get(dtype)
        if (
            kind is None
            or not tensor.is_cpu
            or tensor.layout is not torch.strided
            or tensor.is_quantized
            or tensor.is_nested
            or tensor.is_conj()
            or tensor.is_neg()
            or torch_compat.has_names(tensor)
            or tensor.__dict__
            or tensor._backward_hooks
        ):
            return _reduce_other(tensor)
        storage, offset = tensor.untyped_storage(), tensor.storage_offset()
        if not tensor.is_contiguous() or (offset + tensor.numel()) * dtype.itemsize > storage.nbytes():
            _refuse_freed(tensor)
        identity = _Identity(self._numbering.identify(storage, dtype, kind))
        place = (identity, offset, tuple(tensor.shape), tensor.stride())
        return torch_compat.rebuild_tensor, (*place, tensor.requires_grad, _NoHooks())

    def _reduce_parameter(self, parameter: torch.nn.Parameter) -> Any:
        _refuse_freed(parameter)
        if parameter.__dict__:
            return _reduce_other(parameter)
        return torch_compat.rebuild_parameter, (parameter.data, parameter.requires_grad, _NoHooks())


def _reduce_other(tensor: torch.Tensor) -> Any:
    _refuse_freed(tensor)
    return tensor.__reduce_ex__(2)  # type: ignore[no-untyped-call]


def _dumped(obj: object, numbering: _Numbering, *, plain: bool, replaced: _Replaced | None = None) -> bytes:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, numbering, plain=plain)
    if replaced is not None:
        pickler = _ReplacingPickler(buffer, numbering, plain=plain)
        pickler.replaced = replaced
    pickler.dump(obj)
    return buffer.getvalue()


@functools.cache
def _are_reductions_known() -> bool:
    """Return whether this release of torch pickles tensors as ``_PlainReductions`` does."""
    plain = [torch.zeros(2, 3, dtype=dtype, device="cpu")[:, 1:] for dtype in _STORAGE_TYPES]
    if type(plain[0]) is not torch.Tensor:  # a mode such as FakeTensorMode changes the class
        return False
    specimen = [*plain, *plain, *map(torch.nn.Parameter, plain[:1]), torch.zeros((), device="cpu", requires_grad=True)]
    return _dumped(specimen, _Numbering(), plain=True) == _dumped(specimen, _Numbering(), plain=False)


class _ReadyPickler:
    """Replaces pickle.Pickler in torch.save, which then writes the pickle and the storages of a Pickled."""

    persistent_id: Callable[[Any], Any]  # torch's own: records each storage

    def __init__(self, file: IO[bytes], protocol: int) -> None:
        self._file = file

    def dump(self, pickled: Pickled) -> None:
        for storage in pickled.storages:
            self.persistent_id(storage)
        if "persistent_id" in vars(type(self)):  # torch's own class, in a cycle with the storages
            del type(self).persistent_id
        self._file.write(pickled.data)
