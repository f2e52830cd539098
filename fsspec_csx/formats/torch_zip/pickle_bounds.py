"""What a pickle may make without torch: builtins that make no more than the pickle has bytes for.

When an object is pickled, the arguments that make it are written where they are used; so the arguments of all calls
have fewer elements than the pickle has bytes. ``bytearray(10**9)``, text encoded to hexadecimal digits of hexadecimal
digits, and one list made into thousands of sets break that rule, and need only a few bytes. Neither do tensors have
memory that is in no record of the file.

Not bounded are: copies that torch's functions for quantized tensors, sparse tensors and tensors of other devices make,
the time to hash tuples of tuples that are keys, and files of the format before torch 1.6.
"""

from __future__ import annotations

import io
import pickle
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch

from fsspec_csx.errors import InvalidCheckpointError
from fsspec_csx.formats import sniff
from fsspec_csx.formats.torch_zip.pickle_scan import scan
from fsspec_csx.tensors import torch_compat

_LATIN1 = (("latin1",), ("latin-1",))
_COUNTED = (list, tuple, dict, str, bytes)
_BUILTINS = ("builtins", "__builtin__")  # of Python 3, and of Python 2, as pickle writes them in protocol 2
_FACTORIES = (bool, dict, float, int, list)
_REBUILD = {("torch._utils", f"_rebuild_tensor{version}") for version in ("", "_v2", "_v3")}
_FROM_TYPE = ("torch._tensor", "_rebuild_from_type_v2")


class ExcessError(pickle.UnpicklingError):
    """A pickle makes more than it has bytes for."""


class StandIn:
    """Stands for a class in a pickle, or a storage of a dtype; the pickle cannot call it."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def __call__(self) -> None:
        """Refuse to be called by the pickle."""
        raise TypeError(self.made)


class Bounds:
    """Builtins for a pickle.

    Args:
        most: how many elements all calls may have as arguments: the bytes of the pickle.
        key: looks at each key and each element of a set, and returns it.

    Attributes:
        names: what stands for a module and a name.
        ordered: the mappings that were made.
    """

    def __init__(self, most: int, key: Callable[[Any], Any] = lambda value: value) -> None:
        self._left = most
        self._key = key
        self.ordered: list[OrderedDict[Any, Any]] = []
        self.names: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): self._ordered_dict,
            ("collections", "Counter"): self._counter,
            ("collections", "defaultdict"): self._defaultdict,
            ("_codecs", "encode"): self._encode,
            ("torch", "Size"): self._size,
        }
        made: dict[str, Callable[..., Any]] = {"bytearray": self._bytearray, "bytes": self._bytes, "set": self._set}
        for module in _BUILTINS:
            self.names |= {(module, name): function for name, function in made.items()}
            self.names[module, "complex"] = lambda real, imaginary: complex(real, imaginary)
            self.names |= {(module, kind.__name__): StandIn(kind) for kind in _FACTORIES}

    def take(self, value: Any) -> None:
        """Count the elements of an argument."""
        if type(value) not in _COUNTED:
            raise ExcessError
        self._left -= len(value)
        if self._left < 0:
            raise ExcessError

    def _ordered_dict(self, items: Any = ()) -> OrderedDict[Any, Any]:
        self.take(items)
        if type(items) is not dict and any(type(each) not in (list, tuple) for each in items):
            raise ExcessError
        made = OrderedDict(items if type(items) is dict else [(self._key(key), value) for key, value in items])
        self.ordered.append(made)
        return made

    def _counter(self, counts: Any = ()) -> Counter[Any]:
        self.take(counts)
        return Counter(counts if type(counts) is dict else map(self._key, counts))

    def _defaultdict(self, factory: StandIn | None = None) -> defaultdict[Any, Any]:
        return defaultdict(factory and factory.made)

    def _encode(self, text: Any, *how: Any) -> bytes:
        if type(text) is not str or how not in _LATIN1:
            raise ExcessError
        self.take(text)
        return text.encode("latin-1")

    def _size(self, sizes: Any) -> torch.Size:
        self.take(sizes)
        return torch.Size(sizes)

    def _bytearray(self, *args: Any) -> bytearray:
        self.take(args[0] if args else ())
        return bytearray(*args)

    def _bytes(self) -> bytes:
        return b""

    def _set(self, items: Any = ()) -> set[Any]:
        self.take(items)
        return set(map(self._key, items))


class _Inert:
    """Stands for all else that a pickle names: takes whatever is done to it, and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Memory(_Inert):
    """Stands for torch's classes of tensors and storages, which make memory that is in no record when called."""

    def __new__(cls, *args: Any) -> _Memory:
        if args:
            raise ExcessError
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        raise ExcessError  # it would give a tensor another storage, and enlarge that


class _Record(_Inert):
    """Stands for a storage whose bytes are in the file."""


class _DryRun(pickle.Unpickler):
    """Executes a pickle without torch; ``named`` is what it names, as torch renames it, in order."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.named: dict[str, None] = {}
        self._names = Bounds(len(data)).names
        self._names["collections", "defaultdict"] = lambda *args: defaultdict()

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        module, name = torch_compat.renamed(module, name)
        self.named[f"{module}.{name}"] = None
        if (module, name) == _FROM_TYPE:
            return _from_type
        if (module, name) in _REBUILD:
            return _rebuild
        if module.partition(".")[0] == "torch" and name.endswith(("Tensor", "Storage")):
            return _Memory
        return self._names.get((module, name), _Inert)

    def persistent_load(self, identity: Any) -> Any:
        """What stands for a storage."""
        return _Record()


def _rebuild(storage: Any, *args: Any) -> _Inert:
    if type(storage) is not _Record:
        raise ExcessError
    return _Inert()


def _from_type(function: Callable[..., Any], kind: Any, args: tuple[Any, ...], state: Any) -> Any:
    return function(*args)


def check(data: bytes, name: str) -> list[str]:
    """Refuse a pickle of which torch.load would make far more than it holds; one that fails otherwise is torch's.

    Returns:
        What it names, as far as it could be executed.

    Raises:
        ScanError: if it cannot be scanned; torch ends with an error then, or remembers by any number.
    """
    scan(data)
    run = _DryRun(data)
    try:
        run.load()
    except Exception as error:  # whatever a pickle of anything raises
        if isinstance(error, ExcessError):
            reason = f"{name} is damaged: its pickle makes much more than it holds."
            raise InvalidCheckpointError(reason, sniff.AGAIN) from None
    return list(run.named)
