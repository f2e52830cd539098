"""Makes an object from an outline: tensors replace their placeholders.

Anything that torch.save does not write is refused, such as tensors that reach beyond their storages.
"""

from __future__ import annotations

import io
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fsspec_csx.formats.base import ON_CPU, ReadOptions
from fsspec_csx.formats.placeholders import Placeholder
from fsspec_csx.formats.storage_placement import StoragePlacer
from fsspec_csx.formats.torch_zip.archive import Archive
from fsspec_csx.formats.torch_zip.outline import FROM_TYPE, Named, Outline, Stored
from fsspec_csx.formats.torch_zip.pickle_bounds import FACTORIES, Bounds, refused
from fsspec_csx.tensors import torch_compat
from fsspec_csx.tensors.lazy_object import LazyObject
from fsspec_csx.tensors.memory import reserved
from fsspec_csx.tensors.source import Source

_DIMENSIONS = 64
_ROOM, _HELD = 2**16, 2  # the bytes that buffers may have: a constant, plus a multiple of the pickle's size
_VALUES = {str, int, float, bool, type(None), bytes, bytearray, complex, torch.dtype, torch.Size}
_MAPPINGS = (dict, OrderedDict, Counter, defaultdict)
_TENSORS: dict[str, type] = {"torch.Tensor": torch.Tensor, "torch.nn.parameter.Parameter": torch.nn.Parameter}
_MADE = "made"  # the path of a placeholder whose parts are what was made of it
# Functions whose first argument is the class to make; of FROM_TYPE, it is the second.
_MAKERS = {
    FROM_TYPE,
    *("copyreg._reconstructor", "copyreg.__newobj__"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
}


class Rebuilding:
    """Makes the object of an outline, which it changes.

    Attributes:
        is_complete: whether it left no placeholder, and made nothing that torch.load refuses or makes otherwise.
    """

    def __init__(self, outline: Outline, storages: ArchiveStorages) -> None:
        self.is_complete = True
        self._root = [outline.obj]
        self._storages = storages
        self._dtypes: dict[str, torch.dtype | None] = {"torch.storage.UntypedStorage": None}
        self._dtypes.update(torch_compat.storage_types())
        self._bounds = Bounds(_ROOM + _HELD * outline.size)
        self._made: dict[int, tuple[Any, Any]] = {}  # values that occur again, by address, and what became of them
        self._left: list[Any] = []  # those to look into

    def run(self) -> Any:
        """Return the object; raise an UnpicklingError, or another error of Python or torch, if it is refused."""
        self._left.append(self._root)
        while self._left:
            container = self._left.pop()
            is_list = type(container) is list
            if not is_list:
                self._make_keys(container)
            # No copy, which would take 100 bytes for each number of a list: only values change, and no sizes.
            for key, value in enumerate(container) if is_list else type(container).items(container):
                if type(value) not in _VALUES and (made := self._of(value)) is not value:
                    container[key] = made
        return self._root[0]

    def _of(self, value: Any) -> Any:
        """Return what a value becomes."""
        kind = type(value)
        if kind in _VALUES:
            return value
        if issubclass(kind, Named):
            return self._of_named(value)
        if id(value) not in self._made:
            self._made[id(value)] = value, self._of_other(value)
        return self._made[id(value)][1]

    def _of_other(self, value: Any) -> Any:
        kind = type(value)
        if kind is tuple:
            parts = tuple(map(self._of, value))
            return value if all(one is other for one, other in zip(parts, value, strict=True)) else parts
        if kind is list or kind in _MAPPINGS:
            self._left.append(value)
            if kind is defaultdict and value.default_factory not in FACTORIES:  # a state may replace it
                raise refused("a mapping with an unknown factory")
            if attributes := getattr(value, "__dict__", None):
                if kind is not OrderedDict:  # torch sets attributes only there
                    raise refused("attributes of what has none")
                self._left.append(attributes)
        elif kind in (set, frozenset):
            for each in value:
                self._check_key(each)
        elif kind is Stored:
            self.is_complete = False  # torch.load makes other objects of storages without tensors
            storage, dtype = self._storage(value)
            return storage if dtype is None else torch_compat.typed(storage, dtype)
        elif kind is type and issubclass(value, Named):
            self.is_complete = False
            return Placeholder(value.full)
        elif kind is not Placeholder:
            raise refused(f"a {kind.__name__}")
        return value

    def _make_keys(self, mapping: Any) -> None:
        """Replace the keys that stand for tensors, in the same order."""
        kind = type(mapping)
        others = [key for key in kind.keys(mapping) if type(key) is not str and self._of(key) is not key]
        if others:
            self.is_complete = False  # without its bytes, the name of such an entry is wrong
            items = [(self._of(key), value) for key, value in kind.items(mapping)]
            mapping.clear()
            for key, value in items:
                mapping[key] = value

    def _check_key(self, key: Any) -> None:
        if type(key) not in _VALUES and self._of(key) is not key:
            raise refused("a key of an unknown kind")

    def _of_named(self, named: Named) -> Any:
        if named.path is _MADE:
            return named.parts
        args, states = (named.parts, ()) if type(named.parts) is tuple else (named.parts[0], named.parts[1:])
        if named.path == "_io.BytesIO":
            made: Any = self._buffer(args, states)
        else:
            builder = _BUILDERS.get(named.path)
            made = NotImplemented if builder is None else builder(self, *args)
            if made is NotImplemented:
                return self._kept(named, args, states)
            if states:
                raise refused("a state of what has none")
        named.path, named.parts = _MADE, made
        return made

    def _kept(self, named: Named, args: tuple[Any, ...], states: Sequence[Any]) -> Placeholder:
        """Keep a placeholder, and look into it; it gets the name of the class to make, if that is an argument."""
        self.is_complete = False
        number = 1 if named.path == FROM_TYPE else 0
        if named.path in _MAKERS and len(args) > number:
            named.path = getattr(args[number], "full", named.path)
        named.parts = [args, *states]
        self._left.append(named.parts)
        kept: Placeholder = named
        kept.__class__ = Placeholder
        return kept

    def _buffer(self, args: tuple[Any, ...], states: Sequence[Any]) -> io.BytesIO:
        self.is_complete = False
        made = io.BytesIO()
        if args or len(states) > 1:
            raise refused("a buffer of an unknown kind")
        for data, position, _ in states:
            self._bounds.take(data)
            made.write(data)
            made.seek(position)
        return made

    # -- tensors ---------------------------------------------------------------------------------------------------

    def _storage(self, stored: Any) -> tuple[torch.UntypedStorage, torch.dtype | None]:
        """Return a storage, and the dtype of its elements; None if its tensors have their own dtypes."""
        if type(stored) is not Stored:
            raise refused("a tensor without a storage")
        word, kind, key, location, count = stored
        if word != "storage" or [*map(type, (key, location, count))] != [str, str, int]:
            raise refused("a storage of an unknown kind")
        dtype = self._dtypes[kind.full]
        width = 1 if dtype is None else dtype.itemsize
        return self._storages.get(key, location, count * width), dtype

    def _tensor(self, stored: Any, *args: Any) -> torch.Tensor:
        storage, dtype = self._storage(stored)
        return _tensor(storage, dtype or torch.uint8, *args)

    def _tensor_of_dtype(
        self, stored: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
    ) -> torch.Tensor:
        if not isinstance(dtype, torch.dtype):
            raise refused("a tensor of no dtype")
        return _tensor(self._storage(stored)[0], dtype, offset, size, stride, grad, hooks, metadata)

    def _parameter(self, data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
        tensor = self._of(data)
        if isinstance(tensor, Placeholder):
            return NotImplemented
        if type(tensor) is not torch.Tensor or type(requires_grad) is not bool:
            raise refused("a parameter of no tensor")
        made = torch.nn.Parameter(tensor, requires_grad)
        made._backward_hooks = _hooks(hooks)
        return made if state is None else self._with_state(made, state)

    def _of_type(self, function: Any, kind: Any, args: Any, state: Any) -> Any:
        made_of = _TENSORS.get(getattr(kind, "full", ""))
        tensor = self._of(function(*args)) if made_of else None
        if made_of is None or isinstance(tensor, Placeholder):
            return NotImplemented
        if type(tensor) is not made_of:
            raise refused("a tensor of another class")
        return self._with_state(tensor, state)

    def _with_state(self, tensor: Any, state: Any) -> Any:
        """Set the attributes that a tensor had when it was saved."""
        if type(state) is not dict:
            raise refused("a state of what has none")
        for name, value in state.items():
            setattr(tensor, name, self._of(value))
        return tensor


def _tensor(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    metadata: Any = None,
) -> torch.Tensor:
    """As ``torch._utils._rebuild_tensor_v2`` and ``_v3``, which would enlarge a storage that is too small."""
    if type(requires_grad) is not bool:
        raise refused("a tensor of an unknown kind")
    _check_extent(storage.nbytes(), dtype.itemsize, offset, size, stride)
    made = torch.empty((0,), dtype=dtype, device=storage.device)
    made.set_(storage, offset, size, stride)
    if requires_grad:
        made.requires_grad = True
    if metadata:
        torch_compat.set_tensor_metadata(made, metadata)
    made._backward_hooks = _hooks(hooks)
    return made


def _hooks(hooks: Any) -> OrderedDict[Any, Any]:
    if type(hooks) is not OrderedDict or hooks or vars(hooks):
        raise refused("hooks of a tensor")
    return hooks


def _check_extent(nbytes: int, width: int, offset: Any, size: Any, stride: Any) -> None:
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride) or len(size) > _DIMENSIONS:
        raise refused("a tensor of no shape")
    if type(offset) is not int or offset < 0:
        raise refused("a tensor at no place")
    end = offset + 1
    for count, step in zip(size, stride, strict=True):
        if type(count) is not int or type(step) is not int or count < 0 or step < 0:
            raise refused("a tensor of no shape")
        end += (count - 1) * step
    if end * width > nbytes and 0 not in size:
        raise refused("a tensor larger than its storage")


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": Rebuilding._tensor,
    "torch._utils._rebuild_tensor_v3": Rebuilding._tensor_of_dtype,
    "torch._utils._rebuild_parameter": Rebuilding._parameter,
    "torch._utils._rebuild_parameter_with_state": Rebuilding._parameter,
    "torch._utils._rebuild_meta_tensor_no_storage": lambda _, dtype, size, stride, grad: torch.empty_strided(
        size, stride, dtype=dtype, device="meta", requires_grad=grad
    ),
    "torch.device": lambda _, *args: torch.device(*args),
    FROM_TYPE: Rebuilding._of_type,
}


class ArchiveStorages:
    """The storages of an archive, made on demand."""

    def __init__(self, archive: Archive, placer: StoragePlacer) -> None:
        self._placer = placer
        self._found = {entry.name.split(b"/", 2)[2]: (entry, offset) for entry, offset in archive.data}
        self._made: dict[str, torch.UntypedStorage] = {}

    def get(self, key: str, location: str, nbytes: int) -> torch.UntypedStorage:
        """Return the storage with a key; raise an UnpicklingError if its size is not ``nbytes``."""
        entry, offset = self._found[key.encode()]
        if entry.size != nbytes:
            raise refused("a storage that does not have the size of its record")
        if key not in self._made:
            record = entry.record(offset, reserved(nbytes, torch.device("cpu")))
            self._made[key] = self._placer.place(record, location)
        return self._made[key]


def structure(
    outline: Outline, archive: Archive, source: Source, name: str, options: ReadOptions = ON_CPU
) -> LazyObject | None:
    """Make the object of an archive, without the tensors' bytes.

    Returns:
        None if it is refused, or if it has placeholders and ``options.partial`` is not set.
    """
    placer = StoragePlacer(source, name, options)
    rebuilding = Rebuilding(outline, ArchiveStorages(archive, placer))
    try:
        obj = rebuilding.run()
    except Exception as error:  # torch raises the same, or can load it
        if error is placer.failure:
            raise
        return None
    found = LazyObject(obj, placer.records, placer.has_unplaced)
    return found if rebuilding.is_complete or options.partial else None
