"""Pickled: an object as torch.save pickles it, apart from the bytes of its tensors."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import IO, Any

import torch

from fsspec_csx.tensors import memory, names, torch_compat
from fsspec_csx.tensors.snapshot import copy_storages


class Pickled:
    """What ``torch.save`` would write of an object now: its pickle, and its tensors' storages.

    The pickle is made as torch makes it, with a persistent id in place of each storage:
    https://docs.pytorch.org/docs/stable/notes/serialization.html

    Args:
        obj: what is to be saved.
        copied: whether to copy the storages, so that the object may change; to the CPU, if they are elsewhere.
        replaced: is given each tensor, and returns what is pickled in its place; None for the tensor itself.

    Attributes:
        data: the file's ``data.pkl``.
        storages: in the order of the file's ``data/0``, ``data/1`` and so on.
        nbytes: the size of all of them.

    Raises:
        FreedTensorError: if the storage of a tensor is too small for it.
        RuntimeError: if two tensors share memory under different dtypes, which torch refuses too.
    """

    def __init__(
        self,
        obj: object,
        *,
        copied: bool = False,
        replaced: Callable[[torch.Tensor], torch.Tensor | None] | None = None,
    ) -> None:
        self.storages: list[torch.UntypedStorage] = []
        self._dtypes: list[torch.dtype] = []
        self._keys: dict[int, str] = {}
        self._dtype_at: dict[int, torch.dtype] = {}
        buffer = io.BytesIO()
        try:
            if replaced is None:
                _Pickler(buffer, self._identify).dump(obj)
            else:
                _ReplacingPickler(buffer, self._identify, replaced).dump(obj)
        except _FreedError as error:
            raise memory.refused([name for name, value in names.walk(obj) if value is error.tensor]) from None
        if copied:
            self.storages = copy_storages(self.storages)
        self.data = buffer.getvalue()
        self.nbytes = len(self.data) + sum(storage.nbytes() for storage in self.storages)

    def torch_save(self, file: Any) -> None:
        """Let torch write the file that ``torch.save`` would have written of the object itself."""
        ready = SimpleNamespace(__name__="ready", Pickler=_ReadyPickler)
        torch.save(self, file, pickle_module=ready)

    def thawed(self) -> Any:
        """The object on the memory of the storages, for formats that are no pickles."""
        unpickler = _Unpickler(io.BytesIO(self.data))
        unpickler.storages = [
            torch_compat.typed(storage, dtype) for storage, dtype in zip(self.storages, self._dtypes, strict=True)
        ]
        return unpickler.load()

    def _identify(self, obj: Any) -> tuple[str, Any, str, str, int]:
        """The persistent id of a storage."""
        if isinstance(obj, torch.UntypedStorage):
            storage, dtype, count, kind = obj, torch.uint8, obj.nbytes(), torch.UntypedStorage
        else:
            storage, dtype = torch_compat.untyped(obj), obj.dtype
            count = storage.nbytes() // dtype.itemsize
            kind = torch_compat.storage_type(obj)
        address = storage.data_ptr()
        if address and self._dtype_at.setdefault(address, dtype) != dtype:
            msg = "Two tensors share memory under different dtypes, which no torch file can hold. Clone one of them."
            raise RuntimeError(msg)
        place = torch_compat.address(storage)
        if place not in self._keys:
            self._keys[place] = str(len(self.storages))
            self.storages.append(storage)  # kept: one made for the pickle alone would leave its address to the next
            self._dtypes.append(dtype)
        return "storage", kind, self._keys[place], torch_compat.location_tag(storage), count


_OF_TORCH = (torch.Tensor, torch.storage.TypedStorage, torch.UntypedStorage)


class _FreedError(Exception):
    """The storage of a tensor is too small for it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    """Pickles as torch.save does by default, with persistent ids for objects of some types."""

    def __init__(self, file: IO[bytes], identify: Callable[[Any], Any]) -> None:
        super().__init__(file, protocol=2)
        self._identify = identify

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _OF_TORCH):
            return None
        if not isinstance(obj, torch.Tensor):
            return self._identify(obj)
        if memory.is_freed(obj):
            raise _FreedError(obj)
        return None


class _ReplacingPickler(_Pickler):
    """Pickles other tensors in the place of some."""

    def __init__(
        self,
        file: IO[bytes],
        identify: Callable[[Any], Any],
        replaced: Callable[[torch.Tensor], torch.Tensor | None],
    ) -> None:
        super().__init__(file, identify)
        self._replaced = replaced

    def reducer_override(self, obj: Any) -> Any:
        other = self._replaced(obj) if isinstance(obj, torch.Tensor) else None
        return NotImplemented if other is None else other.__reduce_ex__(2)  # type: ignore[no-untyped-call]


class _Unpickler(pickle.Unpickler):
    """Puts storages where a pickle that was made in this process names them."""

    storages: list[torch.storage.TypedStorage]

    def persistent_load(self, identity: tuple[str, Any, str, str, int]) -> torch.storage.TypedStorage:
        return self.storages[int(identity[2])]


class _ReadyPickler:
    """Stands for pickle.Pickler in torch.save, which then writes the pickle and the storages of a Pickled."""

    persistent_id: Callable[[Any], Any]  # torch's own: notes each storage that it gets

    def __init__(self, file: IO[bytes], protocol: int) -> None:
        self._file = file

    def dump(self, pickled: Pickled) -> None:
        for storage in pickled.storages:
            self.persistent_id(storage)
        if "persistent_id" in vars(type(self)):  # a class for this file alone, in a cycle with all that was noted
            del type(self).persistent_id
        self._file.write(pickled.data)
