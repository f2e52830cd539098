"""Plain state dicts built from their pickle at once: torch's unpickler takes most of the time of many small tensors.

Plain is what has mappings, lists, tuples, texts, numbers, and tensors and parameters that stay on the CPU. Of all else,
and of whatever is not quite right, this builds nothing, and torch reads or refuses it. The globals below are the very
objects that torch.load takes for them, and what is called of them here does what torch's own function does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import serialization
from torch.storage import TypedStorage

from fsspec_csx.formats.opcodes import EndError, Machine, UnknownError
from fsspec_csx.formats.placing import Places, reserved
from fsspec_csx.formats.skeleton import Record, Skeleton
from fsspec_csx.formats.torch_archive import Archive

_VERSION = b"3"
_DIMENSIONS = 64
# Those of torch.save, which writes protocol 2.
_OPCODES = b"\x80c])}.(NJKMGXuseaRbQqhrjt\x85\x86\x87\x88\x89\x8a"
_CPU = torch.device("cpu")
_KEYS = {str, int, float, bool, type(None)}
_TENSOR, _PARAMETER = torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter
_KINDS = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_GLOBALS: dict[bytes, Any] = {
    b"collections\nOrderedDict": OrderedDict,
    b"torch._utils\n_rebuild_tensor_v2": _TENSOR,
    b"torch._utils\n_rebuild_parameter": _PARAMETER,
    **{
        f"torch\n{kind}Storage".encode(): serialization.StorageType(f"{kind}Storage")  # type: ignore[no-untyped-call]
        for kind in _KINDS
    },
}


class _Builder(Machine):
    """The object of a pickle, with storages that are not filled.

    Args:
        archive: with the pickle, and the records of the storages.
        places: where storages belong.

    Attributes:
        records: those of the storages.
    """

    def __init__(self, archive: Archive, places: Places) -> None:
        super().__init__(archive.pickle)
        self._steps = [step if code in _OPCODES else self._unknown for code, step in enumerate(self._steps)]
        self.records: list[Record] = []
        self._places = places
        self._found = {entry.name.split(b"/", 2)[2]: (entry, offset) for entry, offset in archive.data}
        self._storages: dict[str, TypedStorage] = {}

    def made(self) -> Any:
        """Build it."""
        self.run()
        return self._stack.pop()

    def called(self, function: Any, args: Any) -> Any:
        if type(args) is not tuple:
            raise UnknownError
        if function is _TENSOR and len(args) == 6:
            return self._tensor(*args)
        if function is OrderedDict and not args:
            return OrderedDict()
        if function is _PARAMETER and [*map(type, args)] == [torch.Tensor, bool, OrderedDict]:
            return function(*args)  # type: ignore[no-untyped-call]
        raise UnknownError

    def built(self, made: Any, state: Any) -> None:
        if type(made) is not OrderedDict or type(state) is not dict or [*state] != ["_metadata"]:  # of a state dict
            raise UnknownError
        made.__dict__.update(state)

    def identified(self, identity: Any) -> Any:
        word, kind, key, location, count = identity
        if word != "storage" or [*map(type, identity[1:])] != [serialization.StorageType, str, str, int]:
            raise UnknownError
        if key in self._storages:
            return self._storages[key]
        entry, offset = self._found[key.encode()]
        dtype = kind.dtype
        if count * dtype.itemsize != entry.size or not self._places.stays(location):
            raise UnknownError
        storage = reserved(entry.size, _CPU)
        typed = TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]
        if entry.size:
            self.records.append(Record(entry.name.decode(errors="replace"), offset, storage, entry.crc32 or None))
            self._storages[key] = typed
        return typed

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> Any:
        if type(storage) is not TypedStorage or type(hooks) is not OrderedDict or type(requires_grad) is not bool:
            raise UnknownError
        _check_counts(offset, size, stride)
        memory = storage._untyped_storage
        if 0 not in size:
            end = offset + 1 + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
            if end * storage.dtype.itemsize > memory.nbytes():
                raise UnknownError
        tensor = torch.empty((0,), dtype=storage.dtype, device=_CPU)
        tensor.set_(memory, offset, size, stride)
        if requires_grad:
            tensor.requires_grad = True
        tensor._backward_hooks = hooks
        return tensor

    # -- the opcodes -----------------------------------------------------------------------------------------------

    def _containers(self) -> dict[bytes, Callable[[], object]]:
        return {**super()._containers(), b"}": lambda: self._push({})}

    def _name(self, module: bytes, name: bytes) -> Any:
        return _GLOBALS[module + b"\n" + name]

    def _set(self, values: list[Any]) -> None:
        keys = values[::2]
        target = self._stack[-1]
        if type(target) not in (dict, OrderedDict) or not _KEYS.issuperset(map(type, keys)):
            raise UnknownError
        target.update(zip(keys, values[1::2], strict=True))


def load(archive: Archive, map_location: Any) -> Skeleton | None:
    """What ``torch.load(weights_only=True)`` makes of an archive with a plain state dict, less the tensors' bytes.

    Args:
        archive: what it consists of.
        map_location: as of ``torch.load``.

    Returns:
        None of what is not plain.

    Raises:
        RuntimeError: torch's, if there is not enough memory.
    """
    if archive.version != _VERSION or getattr(serialization._serialization_tls, "skip_data", False):
        return None
    builder = _Builder(archive, Places(map_location))
    try:
        return Skeleton(builder.made(), builder.records)
    except (EndError, UnknownError, LookupError, TypeError, ValueError):
        return None


def _check_counts(offset: Any, size: Any, stride: Any) -> None:
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride) or len(size) > _DIMENSIONS:
        raise UnknownError
    for count in (offset, *size, *stride):
        if type(count) is not int or count < 0:
            raise UnknownError
