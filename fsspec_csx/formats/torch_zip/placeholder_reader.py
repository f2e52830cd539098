"""Reads torch files with objects of unknown classes, which become placeholders.

Python's own unpickler reads the pickle, but nothing that the pickle names is looked up, called or changed.
``rebuilding`` makes tensors and a few plain types. Everything else becomes a ``Placeholder`` that records its
arguments. Limits on copies keep a small pickle from taking gigabytes of memory.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.base import ON_CPU, ReadOptions
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import rebuilding, structure_limits
from fsspec_csx.formats.torch_zip.pickle_bounds import Bounds
from fsspec_csx.formats.torch_zip.placeholders import Placeholder
from fsspec_csx.formats.torch_zip.rebuilding import refused
from fsspec_csx.formats.torch_zip.storage_placement import ArchiveStorages, StoragePlacer
from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.source import Source

_ROOM, _HELD = 2**16, 2  # the elements and bytes that may be copied: a constant, plus a multiple of the pickle's size
# Functions whose first argument is the class to make.
_MAKERS = {
    *("copyreg._reconstructor", "copyreg.__newobj__"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
}
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # module names of Python 2, which protocol 2 uses
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_BUILT_IN = {"OrderedDict", "Counter", "encode", "Size", "bytearray", "bytes", "set", "complex"}
_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter")


def structure(source: Source, name: str, options: ReadOptions = ON_CPU) -> LazyObject | None:
    """Read the structure of a torch file, with placeholders for unknown classes; None if the archive is unusual."""
    archive = torch_archive.read(source, name)
    if archive is None:
        return None
    placer = StoragePlacer(source, name, options)
    try:
        obj = _Unpickler(archive.pickle, ArchiveStorages(archive, placer)).load()
    except CheckpointError:
        raise
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, RuntimeError, OverflowError):
        return None
    structure_limits.check(obj, name)
    return LazyObject(obj, placer.records, placer.has_unplaced)


class _Named:
    """A known class or function, and the function that is called in its place."""

    __slots__ = ("call", "path")

    def __init__(self, path: str, call: Callable[..., Any]) -> None:
        self.path = path
        self.call = call

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


class _Unpickler(pickle._Unpickler):  # the Python version, whose memo is a dict
    """Builds the object of a pickle."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # this and the next two are of the base class
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, storages: ArchiveStorages) -> None:
        super().__init__(io.BytesIO(data))
        self._storages = storages
        self._bounds = Bounds(_ROOM + _HELD * len(data), _checked_key)
        self._known = {
            **{f"{module}.{name}": made for (module, name), made in self._bounds.names.items() if name in _BUILT_IN},
            **_REBUILT,
        }

    def find_class(self, module: str, name: str) -> Any:
        path = f"{_RENAMED.get(module, module)}.{name}"
        found = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(found, torch.dtype):
            return found
        if path in self._known:
            return _Named(path, self._known[path])
        return Placeholder(path)

    def persistent_load(self, identity: Any) -> Any:
        word, kind, key, location, count = identity
        if word != "storage" or [*map(type, (key, location, count))] != [str, str, int]:
            raise refused("a storage")
        if not isinstance(kind, Placeholder):
            raise refused("the type of a storage")
        dtype = torch_compat.storage_types().get(kind.path)
        width = 1 if dtype is None else dtype.itemsize
        if dtype is None and kind.path != "torch.storage.UntypedStorage":
            raise refused("the type of a storage")
        storage = self._storages.get(key, location, count * width)
        if dtype is None:
            return storage
        return torch_compat.typed(storage, dtype)

    def _call(self, callee: Any, args: Any) -> Any:
        if type(args) is not tuple:
            raise refused("arguments that are no tuple")
        if isinstance(callee, _Named):
            return callee.call(*args)
        if not isinstance(callee, Placeholder):
            raise refused("a call of what is no function")
        if callee.path == _FROM_TYPE and len(args) == 4 and isinstance(args[1], Placeholder):
            function, kind, inner, state = args
            if kind.path in _TENSORS:
                return _with_state(self._call(function, inner), state)
            return Placeholder(kind.path, args)
        made_of = args[0] if callee.path in _MAKERS and args and isinstance(args[0], Placeholder) else callee
        return Placeholder(made_of.path, args)

    # -- opcodes that call, change or inspect an object --------------------------------------------------------------

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _newobj_ex(self) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], (*args, keywords) if keywords else args)

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Placeholder):
            made.parts.append(state)
        elif type(made) is io.BytesIO and type(state) is tuple and len(state) == 3 and type(state[0]) is bytes:
            self._bounds.take(state[0])
            made.write(state[0])
            made.seek(state[1] if type(state[1]) is int and 0 <= state[1] <= len(state[0]) else 0)
        else:
            _with_state(made, state)

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, Placeholder):
            target.parts += values
        else:
            raise refused("items of what has none")

    def _additems(self) -> None:
        values = self.pop_mark()
        if type(self.stack[-1]) is set:
            self.stack[-1].update(map(_checked_key, values))
        else:
            self._extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) in (dict, OrderedDict, Counter):
            for key, value in zip(map(_checked_key, values[::2]), values[1::2], strict=True):
                target[key] = value
        elif isinstance(target, Placeholder):
            target.parts += values
        else:
            raise refused("entries of what has none")

    def _dict(self) -> None:
        values = self.pop_mark()
        self.append({})
        self._set(values)


for _opcode, _step in {
    pickle.REDUCE: _Unpickler._reduce,
    pickle.NEWOBJ: _Unpickler._reduce,
    pickle.NEWOBJ_EX: _Unpickler._newobj_ex,
    pickle.BUILD: _Unpickler._build,
    pickle.APPEND: lambda self: self._extend([self.stack.pop()]),
    pickle.APPENDS: lambda self: self._extend(self.pop_mark()),
    pickle.ADDITEMS: _Unpickler._additems,
    pickle.SETITEM: lambda self: self._set([self.stack.pop(-2), self.stack.pop()]),
    pickle.SETITEMS: lambda self: self._set(self.pop_mark()),
    pickle.DICT: _Unpickler._dict,
    pickle.FROZENSET: lambda self: self.append(frozenset(map(_checked_key, self.pop_mark()))),
}.items():
    _Unpickler.dispatch[_opcode[0]] = _step
for _opcode in (pickle.INST, pickle.OBJ):  # they call, and occur only in protocols 0 and 1
    del _Unpickler.dispatch[_opcode[0]]


def _checked_key(value: Any) -> Any:
    """Return a key or an element of a set. Refuse nested tuples: to hash them could take forever."""
    if type(value) is tuple and any(isinstance(each, (tuple, frozenset)) for each in value):
        raise refused("a key of nested tuples")
    return value


def _storage_and_dtype(stored: Any) -> tuple[torch.UntypedStorage, torch.dtype]:
    if type(stored) is torch.TypedStorage:
        return torch_compat.untyped(stored), stored.dtype
    if type(stored) is not torch.UntypedStorage:
        raise refused("a tensor without a storage")
    return stored, torch.uint8


def _parameter_with_state(data: Any, requires_grad: Any, hooks: Any, state: Any) -> torch.nn.Parameter:
    made = rebuilding.parameter(data, requires_grad, hooks)
    if type(state) is dict and {*map(type, state)} <= {str}:
        vars(made).update(state)
    return made


_REBUILT: dict[str, Callable[..., Any]] = {
    "_io.BytesIO": lambda: io.BytesIO(),
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    **{
        f"{module}.{name}": made
        for (module, name), made in rebuilding.functions(_storage_and_dtype, indexes=False).items()
    },
}


def _with_state(made: Any, state: Any) -> Any:
    """Set attributes of an object; ``structure_limits.check`` checks them later."""
    if not isinstance(made, (OrderedDict, torch.Tensor)) or type(state) is not dict or {*map(type, state)} - {str}:
        raise refused("a state of what has none")
    vars(made).update(state)
    return made
