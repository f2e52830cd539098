"""Torch files with objects of unknown classes, read but for these: each is a placeholder that says what it stands for.

The pickle is read by Python's own unpickler, but nothing that it names is looked up, called or changed: what makes
tensors and a few plain types is done by ``rebuilding``, and all else becomes a ``Placeholder``, which records what it
would be made of. Limits on what is copied keep a few bytes from becoming gigabytes.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, ClassVar

import torch

from fsspec_csx.errors import CheckpointError
from fsspec_csx.formats.torch_zip import archive as torch_archive
from fsspec_csx.formats.torch_zip import structure_limits
from fsspec_csx.formats.torch_zip.archive import Archive
from fsspec_csx.formats.torch_zip.placeholders import Placeholder
from fsspec_csx.formats.torch_zip.rebuilding import checked_key, known, refused
from fsspec_csx.tensors import fill, torch_compat
from fsspec_csx.tensors.lazy_object import LazyObject, Record
from fsspec_csx.tensors.map_location import LocationMapper, reserved
from fsspec_csx.tensors.source import Source

_ROOM, _HELD = 2**16, 2  # elements and bytes that are copied besides, and for each byte of the pickle
# Functions whose first argument is the class of what they make.
_MAKERS = {
    *("copyreg._reconstructor", "copyreg.__newobj__"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
}
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # modules by their names of Python 2, as in protocol 2
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter")


def structure(
    source: Source, *, name: str, map_location: Any = None, wanted: Collection[int] | None = None
) -> LazyObject | None:
    """The structure of a torch file, with placeholders for objects of unknown classes.

    Args:
        source: the file.
        name: what errors call it.
        map_location: see ``torch.load``.
        wanted: see ``torch_zip.structure``.

    Returns:
        None if the file is not as torch.save writes it today.

    Raises:
        InvalidCheckpointError: if the file is damaged.
        OSError: what the file raised.
    """
    archive = torch_archive.read(source, name)
    if archive is None:
        return None
    storages = Storages(archive, source, name, LocationMapper(map_location), wanted)
    try:
        obj = _Unpickler(archive.pickle, storages).load()
    except CheckpointError:
        raise
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, RuntimeError, OverflowError):
        return None
    structure_limits.check(obj, name)
    return LazyObject(obj, storages.records, storages.left)


class Storages:
    """The storages of an archive, made when they are asked for.

    Attributes:
        records: of those that are to be filled.
        left: see ``LazyObject``.
    """

    def __init__(
        self, archive: Archive, source: Source, name: str, places: LocationMapper, wanted: Collection[int] | None
    ) -> None:
        self.records: list[Record] = []
        self.left = False
        self._found = {entry.name.split(b"/", 2)[2]: (entry, offset) for entry, offset in archive.data}
        self._source, self._name, self._places, self._wanted = source, name, places, wanted
        self._made: dict[str, torch.UntypedStorage] = {}

    def get(self, key: str, location: str, nbytes: int) -> torch.UntypedStorage:
        """The storage of a key, which must have so many bytes."""
        entry, offset = self._found[key.encode()]
        if entry.size != nbytes:
            msg = "a storage does not have the size of its record"
            raise ValueError(msg)
        if key not in self._made:
            storage = reserved(nbytes, torch.device("cpu"))
            record = Record(entry.name.decode(errors="replace"), offset, storage, entry.crc32 or None)
            self._made[key] = self._placed(record, location) if nbytes else storage
        return self._made[key]

    def _placed(self, record: Record, location: str) -> Any:
        stays = self._places.stays(location)
        if stays or (self._wanted is not None and record.offset not in self._wanted):
            self.left |= not stays
            self.records.append(record)
            return record.storage
        device = self._places.device(location)
        if device is None:  # the caller's map_location is to see what is in it
            if fill.fill(self._source, [record]):
                raise torch_archive.damaged(self._name, repr(record.name))
            return self._places.placed(record.storage, location)
        storage = reserved(record.storage.nbytes(), device)
        self.records += [replace(record, storage=storage)] if device.type != "meta" else []
        return storage


class _Named:
    """A class or function that is known: what is done in its place."""

    __slots__ = ("call", "path")

    def __init__(self, path: str, call: Callable[..., Any]) -> None:
        self.path = path
        self.call = call

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)


class _Unpickler(pickle._Unpickler):  # Python's own that is written in Python: its memo is a dict
    """Builds the object of a pickle.

    Args:
        data: the pickle.
        storages: of its archive.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # this and the next three are of the base class
    readline: Callable[[], bytes]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, storages: Storages) -> None:
        super().__init__(io.BytesIO(data))
        self._storages = storages
        self._room = _ROOM + _HELD * len(data)
        self._known = known(self._charge)

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

    def _charge(self, count: int) -> None:
        self._room -= count
        if self._room < 0:
            raise refused("more copies than a pickle of its size needs")

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

    # -- the opcodes that call, change or look into something ------------------------------------------------------

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _newobj_ex(self) -> None:
        keywords, args = self.stack.pop(), self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], (*args, keywords) if keywords else args)

    def _inst(self) -> None:
        module, name = (self.readline()[:-1].decode("ascii") for _ in range(2))
        args = tuple(self.pop_mark())
        self.append(self._call(self.find_class(module, name), args))

    def _obj(self) -> None:
        callee, *args = self.pop_mark()
        self.append(self._call(callee, tuple(args)))

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Placeholder):
            made.parts.append(state)
        elif type(made) is io.BytesIO and type(state) is tuple and len(state) == 3 and type(state[0]) is bytes:
            self._charge(len(state[0]))
            made.write(state[0])
            made.seek(state[1] if type(state[1]) is int and 0 <= state[1] <= len(state[0]) else 0)
        else:
            _with_state(made, state)

    def _append(self) -> None:
        value = self.stack.pop()
        self._extended(self.stack[-1], [value])

    def _appends(self) -> None:
        values = self.pop_mark()
        self._extended(self.stack[-1], values)

    def _extended(self, target: Any, values: list[Any]) -> None:
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, Placeholder):
            target.parts += values
        else:
            raise refused("items of what has none")

    def _additems(self) -> None:
        values = self.pop_mark()
        if type(self.stack[-1]) is set:
            self.stack[-1].update(map(checked_key, values))
        else:
            self._extended(self.stack[-1], values)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], [key, value])

    def _setitems(self) -> None:
        values = self.pop_mark()
        self._set(self.stack[-1], values)

    def _set(self, target: Any, values: list[Any]) -> None:
        if type(target) in (dict, OrderedDict, Counter):
            for key, value in zip(map(checked_key, values[::2]), values[1::2], strict=True):
                target[key] = value
        elif isinstance(target, Placeholder):
            target.parts += values
        else:
            raise refused("entries of what has none")

    def _dict(self) -> None:
        values = self.pop_mark()
        self.append({})
        self._set(self.stack[-1], values)

    def _frozenset(self) -> None:
        self.append(frozenset(map(checked_key, self.pop_mark())))


for _opcode, _step in {
    pickle.REDUCE: _Unpickler._reduce,
    pickle.NEWOBJ: _Unpickler._reduce,
    pickle.NEWOBJ_EX: _Unpickler._newobj_ex,
    pickle.INST: _Unpickler._inst,
    pickle.OBJ: _Unpickler._obj,
    pickle.BUILD: _Unpickler._build,
    pickle.APPEND: _Unpickler._append,
    pickle.APPENDS: _Unpickler._appends,
    pickle.ADDITEMS: _Unpickler._additems,
    pickle.SETITEM: _Unpickler._setitem,
    pickle.SETITEMS: _Unpickler._setitems,
    pickle.DICT: _Unpickler._dict,
    pickle.FROZENSET: _Unpickler._frozenset,
}.items():
    _Unpickler.dispatch[_opcode[0]] = _step


def _with_state(made: Any, state: Any) -> Any:
    """An object with attributes, which ``nesting.check`` looks at later."""
    if not isinstance(made, (OrderedDict, torch.Tensor)) or type(state) is not dict or {*map(type, state)} - {str}:
        raise refused("a state of what has none")
    vars(made).update(state)
    return made
